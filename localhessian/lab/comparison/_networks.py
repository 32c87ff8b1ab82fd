"""Networks to train by name, for the images at hand."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._types import Array, Context, Key
from localhessian.lab import zoo
from localhessian.lab._data import Images
from localhessian.lab._models import MODELS, digits_network
from localhessian.lab.comparison._network import Network, nnx_network
from localhessian.network import Block, Chain

_ACTIVATIONS = {
    "linear": (lambda u: u, 1.0),
    "relu": (jax.nn.relu, 2.0),
    "sigmoid": (jax.nn.sigmoid, 1.0),
    "tanh": (jnp.tanh, 1.0),
}
"""The activation, and n times the variance of the initial weights, n the width below."""


_ZOO = re.compile(r"(vgg|resnet)(\d+)(-bn|-plain)?(?:-by(\d+))?")
"""Family, depth, what is changed, and by what the number of channels is divided."""


def network(name: str, images: Images, *, depth: int = 5, width: int = 16) -> Network:
    """A network by name.

    Args:
        name: `plain`, `batchnorm` or `skip`, the convolutional networks of `digits_network`; a plain dense network
            without normalization and skips: `linear`, `relu`, `sigmoid` or `tanh`, with a depth of its own if one
            follows: `sigmoid-20`; or of the zoo (flax nnx, tested with running statistics) `vgg13`, `vgg13-bn`,
            `resnet20`, `resnet20-plain` (without skips) and other depths, a divisor of the channels behind:
            `vgg13-bn-by4`.
        images: Their shape and number of classes are used.
        depth: Blocks before the head.
        width: Channels, or units.

    Raises:
        ValueError: There is none of that name, or a size is no positive whole number.
    """
    for size, value in (("depth", depth), ("width", width)):
        if np.asarray(value).dtype.kind not in "iu" or value < 1:
            raise ValueError(f"`{size}` must be a whole number of at least 1, got {value!r}.")
    kind, _, own = name.partition("-")
    if kind in _ACTIVATIONS and (own.isdigit() or not own):
        return dense_network(name, kind, images, depth=int(own or depth), width=width)
    if match := _ZOO.fullmatch(name):
        return _of_the_zoo(name, images, *match.groups())
    if name in MODELS:
        sizes = {"depth": depth, "width": width, "classes": images.classes, "channels": images.train_x.shape[-1]}

        def init(key: Key) -> tuple[dict, Context]:
            return digits_network(name, key, **sizes).params, None

        return Network(name, digits_network(name, jax.random.key(0), **sizes).chain, init)
    known = ", ".join((*MODELS, *_ACTIVATIONS))
    raise ValueError(
        f"there is no network {name!r}: use {known}; a depth may follow the last four, as in `tanh-20`; or `vgg13-bn`, "
        "`resnet20` and their like, with a divisor of the channels behind, as in `vgg13-bn-by4`."
    )


def _of_the_zoo(name: str, images: Images, family: str, depth: str, change: str | None, divisor: str | None) -> Network:
    sizes: dict[str, Any] = {"classes": images.classes, "channels": images.train_x.shape[-1]}
    share = 1 / int(divisor or 1)

    def build(rngs: Any) -> Any:
        if family == "vgg":
            norm = "batch" if change == "-bn" else None
            stages = min(5, int(math.log2(min(images.train_x.shape[1:3]))))
            return zoo.vgg(int(depth), width=share, norm=norm, stages=stages, rngs=rngs, **sizes)
        return zoo.resnet(int(depth), width=max(round(16 * share), 1), skip=change != "-plain", rngs=rngs, **sizes)

    return nnx_network(name, build, jnp.zeros((2, *images.train_x.shape[1:])), at="layers.*")


def dense_network(name: str, activation: str, images: Images, *, depth: int, width: int) -> Network:
    """`depth` dense blocks of equal width with an activation, and a linear head; biases begin at 0."""
    inputs = images.train_x[0].size
    widths = [inputs] + [width] * depth
    names = [f"dense{i}" for i in range(1, depth + 1)]
    apply, gain = _dense(activation), _ACTIVATIONS[activation][1]
    chain = Chain([Block(block, apply) for block in names] + [Block("head", _affine)])

    def init(key: Key) -> tuple[dict, Context]:
        params = {}
        for i, block in enumerate((*names, "head")):
            out, scale = (width, gain) if i < depth else (images.classes, 1.0)
            kernel = jax.random.normal(jax.random.fold_in(key, i), (widths[i], out)) * (scale / widths[i]) ** 0.5
            params[block] = {"kernel": kernel, "bias": jnp.zeros(out)}
        return params, None

    return Network(name, chain, init)


@functools.cache
def _dense(activation: str):
    """One function for each activation, so that equal blocks share their programs."""
    function = _ACTIVATIONS[activation][0]
    return lambda params, z: function(_affine(params, z))


def _affine(params: dict[str, Array], z: Array) -> Array:
    return z.reshape(z.shape[0], -1) @ params["kernel"] + params["bias"][None]
