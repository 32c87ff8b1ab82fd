"""One builder for each family of networks, with the family's sizes as parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from localhessian._types import Array
from localhessian.lab.zoo._layers import (
    Convolution,
    Dense,
    Layers,
    PooledHead,
    TransformerLayer,
    dtype,
    initializer,
    norm_named,
    pairs,
)

_VGG = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_IMAGENET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def first_channels(depth: int) -> int:
    """Of the first stage of a ResNet, as published."""
    return 64 if depth in _IMAGENET else 16


def mlp(
    widths: Sequence[int],
    *,
    activation: str = "tanh",
    norm: str | None = None,
    init: str = "lecun",
    scale: float = 1.0,
    rngs: nnx.Rngs,
) -> Layers:
    """A multilayer perceptron: `len(widths) - 1` affine maps, all but the last followed by an activation.

    Args:
        widths: Of the input, the hidden layers and the output.
        activation: `linear` (a deep linear network), `relu`, `sigmoid`, `tanh` or `gelu`.
        norm: `batch` or `layer`, between an affine map and its activation; None for none.
        init: Of kernels: a name of `INITIALIZERS`.
        scale: Times the kernels.
        rngs: Random numbers of flax nnx.

    Raises:
        ValueError: Fewer than two widths, or an unknown name.

    Example:
        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> from localhessian.lab import zoo
        >>> cut = lh.chain_from_nnx(zoo.mlp((4, 8, 2), rngs=nnx.Rngs(0)), jnp.ones((3, 4)))
        >>> cut.chain.names
        ('layers.0', 'layers.1')
    """
    *hidden, last = pairs(widths)
    kernel_init = initializer(init, scale)
    layers = [Dense(*shape, activation, kernel_init, norm, rngs) for shape in hidden]
    return Layers([*layers, Dense(*last, "linear", kernel_init, None, rngs)])


def vgg(
    depth: int = 13,
    *,
    width: float = 1.0,
    norm: str | None = "batch",
    classes: int = 10,
    channels: int = 3,
    stages: int = 5,
    init: str = "he",
    rngs: nnx.Rngs,
) -> Layers:
    """VGG for small images: stages of 3 x 3 convolutions with a max-pooling after each, and a linear head.

    Args:
        depth: 11, 13, 16 or 19, as in the paper (whose two further dense layers are left out).
        width: Times the 64, 128, 256, 512, 512 channels of the stages.
        norm: `batch` or None.
        classes: Logits.
        channels: Of the images.
        stages: How many of the five; each halves the image.
        init: Of kernels, by name.
        rngs: Random numbers of flax nnx.

    Raises:
        ValueError: Another depth, or an unknown name.
    """
    if depth not in _VGG:
        raise ValueError(f"`depth` must be one of {', '.join(map(str, _VGG))}, got {depth}.")
    layers: list[nnx.Module] = []
    kernel_init = initializer(init)
    for stage, count in enumerate(_VGG[depth][:stages]):
        features = max(round(width * 64 * 2 ** min(stage, 3)), 1)
        for i in range(count):
            pool = i == count - 1
            layers.append(Convolution(channels, features, norm=norm, kernel_init=kernel_init, pool=pool, rngs=rngs))
            channels = features
    return Layers([*layers, PooledHead(channels, classes, initializer("lecun"), rngs)])


class ResidualBlock(nnx.Module):
    """Two 3 x 3 convolutions with a skip connection around them, normalized before or after."""

    def __init__(
        self,
        channels: int,
        features: int,
        stride: int,
        *,
        norm: str | None,
        skip: bool,
        preactivation: bool,
        init: str,
        rngs: nnx.Rngs,
    ):
        """Make the parameters; the skip is projected where the shape changes."""
        kernel_init = initializer(init)
        self.skip, self.preactivation = skip, preactivation
        before: dict[str, Any] = {"norm": norm, "kernel_init": kernel_init, "rngs": rngs}
        if preactivation:
            self.norm1 = _Normalized(channels, norm, rngs)
            self.norm2 = _Normalized(features, norm, rngs)
            before["norm"] = None
        self.conv1 = Convolution(channels, features, stride=stride, activation=_after(preactivation), **before)
        self.conv2 = Convolution(features, features, activation="linear", **before)
        changes = stride != 1 or channels != features
        project: dict[str, Any] = {"size": 1, "stride": stride, "activation": "linear"}
        self.project = Convolution(channels, features, **project, **before) if skip and changes else None

    def __call__(self, x: Array) -> Array:
        """NHWC to NHWC."""
        if self.preactivation:
            u = self.norm1(x)
            out = self.conv2(self.norm2(self.conv1(u)))
            shortcut = x if self.project is None else self.project(u)
            return out + shortcut if self.skip else out
        out = self.conv2(self.conv1(x))
        shortcut = x if self.project is None else self.project(x)
        return jax.nn.relu(out + shortcut if self.skip else out)


class _Normalized(nnx.Module):
    """Normalization and ReLU."""

    def __init__(self, features: int, norm: str | None, rngs: nnx.Rngs):
        self.norm = norm_named(norm, features, rngs)

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(x if self.norm is None else self.norm(x))


def _after(preactivation: bool) -> str:
    return "linear" if preactivation else "relu"


def resnet(
    depth: int = 20,
    *,
    width: int = 16,
    norm: str | None = "batch",
    skip: bool = True,
    preactivation: bool = False,
    classes: int = 10,
    channels: int = 3,
    init: str = "he",
    rngs: nnx.Rngs,
) -> Layers:
    """ResNet of basic blocks: for CIFAR (depth 6 n + 2, three stages) or ImageNet (depth 18 or 34, four stages).

    Args:
        depth: 8, 14, 20, 32, 44, 56, 110, ...; or 18 or 34.
        width: Channels of the first stage; each stage doubles them.
        norm: `batch` or None.
        skip: False leaves the skip connections out.
        preactivation: Normalization and ReLU before each convolution instead of after it.
        classes: Logits.
        channels: Of the images.
        init: Of kernels, by name.
        rngs: Random numbers of flax nnx.

    Raises:
        ValueError: Another depth, or an unknown name.
    """
    imagenet = depth in _IMAGENET
    if not imagenet and (depth < 8 or (depth - 2) % 6):
        raise ValueError(f"`depth` must be 18, 34 or 6 n + 2 (8, 14, 20, ...), got {depth}.")
    counts = _IMAGENET[depth] if imagenet else ((depth - 2) // 6,) * 3
    stem: dict[str, Any] = {"size": 7, "stride": 2, "pool": True} if imagenet else {}
    stem_norm, stem_activation = (None, "linear") if preactivation else (norm, "relu")
    layers: list[nnx.Module] = [
        Convolution(
            channels,
            width,
            norm=stem_norm,
            activation=stem_activation,
            kernel_init=initializer(init),
            rngs=rngs,
            **stem,
        )
    ]
    switches: dict[str, Any] = {"norm": norm, "skip": skip, "preactivation": preactivation, "init": init, "rngs": rngs}
    features = width
    for stage, count in enumerate(counts):
        for i in range(count):
            stride = 2 if stage and not i else 1
            out = width * 2**stage
            layers.append(ResidualBlock(features, out, stride, **switches))
            features = out
    if preactivation:
        layers.append(_Normalized(features, norm, rngs))
    return Layers([*layers, PooledHead(features, classes, initializer("lecun"), rngs)])


class TokenEmbedding(nnx.Module):
    """Token and position tables, summed."""

    def __init__(self, vocabulary: int, context: int, dim: int, rngs: nnx.Rngs):
        """Make the tables."""
        self.tokens = nnx.Embed(vocabulary, dim, param_dtype=dtype(), rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (context, dim)))

    def __call__(self, tokens: Array) -> Array:
        """(n, tokens) integers to (n, tokens, dim)."""
        return self.tokens(tokens) + self.positions[None, : tokens.shape[1]]


class PatchEmbedding(nnx.Module):
    """Patches of an image as tokens, with positions."""

    def __init__(self, image: int, patch: int, channels: int, dim: int, rngs: nnx.Rngs):
        """Make the parameters."""
        size = (patch, patch)
        self.patches = nnx.Conv(channels, dim, size, strides=size, padding="VALID", param_dtype=dtype(), rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), ((image // patch) ** 2, dim)))

    def __call__(self, x: Array) -> Array:
        """NHWC to (n, tokens, dim)."""
        tokens = self.patches(x)
        return tokens.reshape(x.shape[0], -1, tokens.shape[-1]) + self.positions[None]


class TokenHead(nnx.Module):
    """Layer norm and an affine map to logits: of every token, or of their mean."""

    def __init__(self, dim: int, outputs: int, pooled: bool, rngs: nnx.Rngs):
        """Make the parameters."""
        self.norm = nnx.LayerNorm(dim, param_dtype=dtype(), rngs=rngs)
        self.linear = nnx.Linear(dim, outputs, param_dtype=dtype(), rngs=rngs)
        self.pooled = pooled

    def __call__(self, x: Array) -> Array:
        """(n, tokens, dim) to logits."""
        x = self.norm(x)
        return self.linear(jnp.mean(x, axis=1) if self.pooled else x)


def gpt(
    *,
    vocabulary: int = 64,
    context: int = 64,
    layers: int = 4,
    dim: int = 128,
    heads: int = 4,
    init: str = "lecun",
    rngs: nnx.Rngs,
) -> Layers:
    """A pre-norm causal transformer on tokens, logits for every position.

    Args:
        vocabulary: Tokens there are.
        context: The longest sequence.
        layers: Transformer layers.
        dim: Features of a token.
        heads: Of the attention.
        init: Of the layers' kernels, by name.
        rngs: Random numbers of flax nnx.

    Raises:
        ValueError: `dim` is not a multiple of `heads`, or an unknown name.
    """
    kernel_init = initializer(init)
    body = [TransformerLayer(dim, heads, causal=True, kernel_init=kernel_init, rngs=rngs) for _ in range(layers)]
    return Layers([TokenEmbedding(vocabulary, context, dim, rngs), *body, TokenHead(dim, vocabulary, False, rngs)])


def vit(
    *,
    image: int = 32,
    patch: int = 4,
    channels: int = 3,
    classes: int = 10,
    layers: int = 6,
    dim: int = 128,
    heads: int = 4,
    init: str = "lecun",
    rngs: nnx.Rngs,
) -> Layers:
    """A vision transformer: patches as tokens, pre-norm layers, logits from the mean token.

    Args:
        image: Height and width.
        patch: Of a patch; divides `image`.
        channels: Of the images.
        classes: Logits.
        layers: Transformer layers.
        dim: Features of a token.
        heads: Of the attention.
        init: Of the layers' kernels, by name.
        rngs: Random numbers of flax nnx.

    Raises:
        ValueError: Sizes that do not divide, or an unknown name.
    """
    if image % patch:
        raise ValueError(f"`image` must be a multiple of `patch`, got {image} and {patch}.")
    kernel_init = initializer(init)
    body = [TransformerLayer(dim, heads, causal=False, kernel_init=kernel_init, rngs=rngs) for _ in range(layers)]
    return Layers([PatchEmbedding(image, patch, channels, dim, rngs), *body, TokenHead(dim, classes, True, rngs)])
