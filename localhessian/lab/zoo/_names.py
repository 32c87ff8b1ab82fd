"""Networks to train by name, for the images at hand."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from localhessian._types import Key
from localhessian.lab._data import Images, check_images
from localhessian.lab.zoo._chains import MODELS, Model, dense_network, digits_network
from localhessian.lab.zoo._families import first_channels, resnet, vgg
from localhessian.lab.zoo._layers import ACTIVATIONS
from localhessian.lab.zoo._network import Network, nnx_network

_FAMILY = re.compile(r"(vgg|resnet)(\d+)(-bn|-plain)?(?:-by(\d+))?")
"""Family, depth, what is changed, and by what the number of channels is divided."""


def network(name: str, images: Images, *, depth: int = 5, width: int = 16) -> Network:
    """A network by name.

    Args:
        name: `plain`, `batchnorm` or `skip`, of `digits_network`; an activation, of `dense_network`: `linear`, `relu`,
            `sigmoid`, `tanh` or `gelu`, with a depth of its own if one follows: `sigmoid-20`; or of the families in
            flax nnx (tested with running statistics) `vgg13`, `vgg13-bn`, `resnet20`, `resnet20-plain` (without skips),
            `resnet18` (four stages, for images of 64 pixels and more) and other depths, a divisor of the channels
            behind: `vgg13-bn-by4`.
        images: Their shape and number of classes are used.
        depth: Blocks before the head.
        width: Channels, or units.

    Raises:
        ValueError: There is none of that name, a size is no positive whole number, or the samples are no images, or too
            small ones, and the network convolves.
    """
    for size, value in (("depth", depth), ("width", width)):
        if np.asarray(value).dtype.kind not in "iu" or value < 1:
            raise ValueError(f"`{size}` must be a whole number of at least 1, got {value!r}.")
    sizes = {"classes": images.classes, "channels": images.train_x.shape[-1]}
    kind, _, own = name.partition("-")
    if kind in ACTIVATIONS and (own.isdigit() or not own):
        widths = [images.train_x[0].size, *[width] * int(own or depth), images.classes]
        return _of_chain(name, lambda key: dense_network(widths, key, activation=kind))
    shape = images.train_x.shape[1:]
    if name in MODELS:
        check_images(name, shape)
        return _of_chain(name, lambda key: digits_network(name, key, depth=depth, width=width, **sizes))
    if match := _FAMILY.fullmatch(name):
        check_images(name, shape)
        return nnx_network(name, _of_family(match, shape, sizes), jnp.zeros((2, *shape)), at="layers.*")
    raise ValueError(
        f"there is no network {name!r}: use {', '.join((*MODELS, *ACTIVATIONS))}; a depth may follow an activation, as "
        "in `tanh-20`; or `vgg13-bn`, `resnet20` and their like, with a divisor of the channels behind, as in "
        "`vgg13-bn-by4`."
    )


def _of_chain(name: str, make: Callable[[Key], Model]) -> Network:
    return Network(name, make(jax.random.key(0)).chain, lambda key: (make(key).params, None))


def _of_family(match: re.Match, shape: tuple[int, ...], sizes: dict[str, Any]) -> Callable[[nnx.Rngs], nnx.Module]:
    family, depth, change, divisor = match.groups()
    share = 1 / int(divisor or 1)
    if family == "vgg":
        if min(shape[:2]) < 2:
            raise ValueError(f"{match.group()!r} halves its images, and these are of {shape[0]} x {shape[1]}.")
        norm, stages = "batch" if change == "-bn" else None, min(5, int(math.log2(min(shape[:2]))))
        return lambda rngs: vgg(int(depth), width=share, norm=norm, stages=stages, rngs=rngs, **sizes)
    width, skip = max(round(share * first_channels(int(depth))), 1), change != "-plain"
    return lambda rngs: resnet(int(depth), width=width, skip=skip, rngs=rngs, **sizes)
