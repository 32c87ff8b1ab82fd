"""Scalars of blocks against scalars of single layers, as the paper writes them: VGG13 with batch norm.

    python benchmarks/per_layer.py [--cifar10 FOLDER] [--by 4] [--steps 0 150]

The same network is cut after each convolution with its normalization, ReLU and pooling (a block of the zoo), and once
more after each convolution and each normalization, which sees the statistics of the batch. What scale-amended SGD with
the scalar `mean` multiplies the gradient of each kernel by is compared, relative to each other, because normalization
takes a common factor out; and that of the scales and shifts of each normalization with that of the kernel before it,
which in a block is the same.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import localhessian as lh
from localhessian.lab import Augmentation, Images, cifar10, digits, zoo

BATCH = 64
CUTS = {"blocks": ("layers.*",), "layers": ("layers.*.conv", "layers.*.norm")}
loss = optax.softmax_cross_entropy_with_integer_labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", help="folder of its files; default: the packaged digits")
    parser.add_argument("--by", type=int, default=4, help="the number of channels is divided by this")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 150], help="of SGD with momentum, before each look")
    options = parser.parse_args()
    images = cifar10(options.cifar10) if options.cifar10 else digits()
    prepare = Augmentation.standard(images, pad=0, flip=False).plain
    stages = min(5, int(np.log2(min(images.train_x.shape[1:3]))))

    @nnx.jit
    def begun() -> nnx.Module:
        sizes = {"classes": images.classes, "channels": images.train_x.shape[-1], "stages": stages}
        return zoo.vgg(13, width=1 / options.by, rngs=nnx.Rngs(0), **sizes)

    model, done = begun(), 0
    optimizer = nnx.Optimizer(model, optax.sgd(0.02, 0.9), wrt=nnx.Param)
    x, y = (jnp.asarray(part[:BATCH]) for part in (images.train_x, images.train_y))
    for steps in options.steps:
        train(model, optimizer, images, prepare, range(done, steps))
        done = max(done, steps)
        found = {name: factors(model, at, prepare(x), y) for name, at in CUTS.items()}
        report(done, found["blocks"], found["layers"])


def train(model, optimizer, images: Images, prepare, steps: range) -> None:
    @nnx.jit
    def step(model, optimizer, x, y):
        gradients = nnx.grad(lambda model: loss(model(prepare(x)), y).mean())(model)
        optimizer.update(model, gradients)

    for at in steps:
        chosen = np.random.default_rng([0, at]).integers(0, len(images.train_x), BATCH)
        step(model, optimizer, jnp.asarray(images.train_x[chosen]), jnp.asarray(images.train_y[chosen]))


def factors(model: nnx.Module, at: tuple[str, ...], x: jax.Array, y: jax.Array) -> dict[str, float]:
    """log10 of 1 / (m_W prod m_z of the blocks above), by block with parameters."""
    cut = lh.chain_from_nnx(model, x, at=at)
    scalars = lh.local_scalars(lh.back_match(cut.chain, cut.params, x, y, loss, cut.context))
    weights, inputs = (np.log10(np.asarray(values, np.float64)) for values in scalars[:2])
    return {name: -weights[b] - inputs[b + 1 :].sum() for b, name in enumerate(cut.chain.names) if cut.params[name]}


def report(steps: int, blocks: dict[str, float], layers: dict[str, float]) -> None:
    kernels = {name: layers[f"{name}.conv"] for name in blocks if f"{name}.conv" in layers}
    apart = np.array([blocks[name] - kernel for name, kernel in kernels.items()])
    norms = np.array([layers[f"{name}.norm"] - kernel for name, kernel in kernels.items()])
    along = np.array([blocks[name] for name in kernels])
    print(
        f"after {steps} steps: factors of kernels differ along depth up to {10 ** np.ptp(along):.3g}-fold;\n"
        f"  those of blocks and of layers, relative to each other, by at most {10 ** np.ptp(apart):.3g} times;\n"
        f"  those of a normalization are {10 ** norms.min():.2g} to {10 ** norms.max():.2g} times that of its kernel",
        flush=True,
    )


if __name__ == "__main__":
    main()
