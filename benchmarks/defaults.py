"""What `lh.analyze` without options takes of models of a public size, and what its rows say.

    python benchmarks/defaults.py [resnet50 vit-s16 gpt2-width ..]

ResNet-50 with batch norm on 8 images of 64 x 64, ViT-S/16 on 8 of 224 x 224, two layers of GPT-2's width (vocabulary
50,257) on 2 x 64 tokens; random weights and data. Seconds by the clock with compilation, the largest memory of the
process so far (one model a call tells its own), rows by status, and rows that have neither a condition number nor a
note.
"""

import resource
import sys
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import localhessian as lh
from localhessian.lab import zoo

RANDOM = np.random.default_rng(0)
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Bottleneck(nnx.Module):
    def __init__(self, inputs: int, width: int, stride: int, rngs: nnx.Rngs) -> None:
        shapes = ((inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1))
        self.layers = nnx.List([_convolution(*shape, rngs) for shape in shapes])
        same = stride == 1 and inputs == 4 * width
        self.skip = None if same else _convolution(inputs, 4 * width, 1, stride, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(self.layers[1](jax.nn.relu(self.layers[0](x))))
        return jax.nn.relu(self.layers[2](h) + (x if self.skip is None else self.skip(x)))


def _convolution(inputs: int, outputs: int, window: int, stride: int, rngs: nnx.Rngs) -> nnx.Sequential:
    kernel = nnx.Conv(inputs, outputs, (window, window), strides=(stride, stride), use_bias=False, rngs=rngs)
    return nnx.Sequential(kernel, nnx.BatchNorm(outputs, rngs=rngs))


class Stem(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = _convolution(3, 64, 7, 2, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.max_pool(jax.nn.relu(self.layer(x)), (3, 3), strides=(2, 2), padding="SAME")


class Head(nnx.Module):
    def __init__(self, inputs: int, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(inputs, 1000, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x.mean((1, 2)))


class ResNet50(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        layers, inputs = [Stem(rngs)], 64
        for stage, count in enumerate((3, 4, 6, 3)):
            for i in range(count):
                layers.append(Bottleneck(inputs, 64 * 2**stage, 2 if stage and not i else 1, rngs))
                inputs = 256 * 2**stage
        self.layers = nnx.List([*layers, Head(inputs, rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


def model(name: str):
    """A model, x, y and a loss."""
    rngs = nnx.Rngs(0)
    if name == "gpt2-width":
        x = jnp.asarray(RANDOM.integers(0, 50257, (2, 64)))
        gpt = zoo.gpt(vocabulary=50257, context=1024, layers=2, dim=768, heads=12, rngs=rngs)
        return gpt, x, jnp.roll(x, -1, 1), lambda z, y: cross_entropy(z, y).mean(1)
    side = 64 if name == "resnet50" else 224
    x = jnp.asarray(RANDOM.normal(size=(8, side, side, 3)), jnp.float32)
    y = jnp.asarray(RANDOM.integers(0, 1000, 8))
    if name == "resnet50":
        return ResNet50(rngs), x, y, cross_entropy
    return zoo.vit(image=side, patch=16, classes=1000, layers=12, dim=384, heads=6, rngs=rngs), x, y, cross_entropy


def main(names: list[str]) -> None:
    print(jax.devices()[0].device_kind)
    for name in names:
        network, x, y, loss = model(name)
        cut = lh.chain_from_nnx(network, x, at="layers.*")
        started = time.perf_counter()
        report = lh.analyze(cut.chain, cut.params, x, y, loss, cut.context, progress=True)
        seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows = report.rows
        bare = [row.key for row in rows if not (row.note or np.isfinite(row.kappa_plus) or np.isfinite(row.kappa_q05))]
        counts = ", ".join(f"{count} {status}" for status, count in Counter(str(row.status) for row in rows).items())
        print(f"{name}: {seconds:.0f} s, at most {peak:.1f} GiB, {len(rows)} rows: {counts}")
        print(f"  rows without a figure, an interval or a note: {bare or 'none'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["resnet50", "vit-s16", "gpt2-width"])
