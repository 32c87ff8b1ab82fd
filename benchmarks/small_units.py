"""Whole spectra by the input of layers without parameters, against the largest eigenvalue alone by Golub-Kahan.

    OMP_NUM_THREADS=1 python benchmarks/small_units.py [--samples 16] [--side 32] [--channels 16]

Seconds of the processor, warm: both routes have run once. The layers have a unit for each element or window.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

import localhessian as lh

LAYERS = {
    "max pooling 2 x 2": lambda z: nn.max_pool(z, (2, 2), (2, 2)),
    "max pooling 3 x 3, stride 2": lambda z: nn.max_pool(z, (3, 3), (2, 2)),
    "average pooling 2 x 2": lambda z: nn.avg_pool(z, (2, 2), (2, 2)),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "flatten": lambda z: z.reshape(len(z), -1),
    "dropout, held": lambda z: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, z.shape), 2 * z, 0),
    "gated": lambda z: z[..., ::2] * jax.nn.sigmoid(z[..., 1::2]),
    "units of order 2": lambda z: jnp.stack([z[..., ::2] + z[..., 1::2], z[..., ::2] - 3 * z[..., 1::2]]).swapaxes(
        0, 1
    ),
}


def operator(layer: Callable, shape: tuple[int, ...]) -> lh.SymmetricOperator:
    chain = lh.Chain([lh.Block("layer", lambda w, z: layer(z)), lh.Block("scale", lambda w, z: w * z)])
    loss = lambda z, y: 0.5 * jnp.sum(z.reshape(len(z), -1) ** 2, axis=1) + 0 * y
    z = jax.random.normal(jax.random.key(1), shape)
    matching = lh.back_match(chain, {"layer": {}, "scale": jnp.ones(())}, z, jnp.zeros(shape[0]), loss)
    return lh.local_hessian(matching, "layer", "input")


def seconds(run: Callable[[], lh.Spectrum]) -> tuple[float, lh.Spectrum]:
    taken = []
    for _ in range(4):
        begin = time.process_time()
        found = jax.block_until_ready(run())
        taken.append(time.process_time() - begin)
    return min(taken[1:]), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--channels", type=int, default=16)
    options = parser.parse_args()
    for name, layer in LAYERS.items():
        one = operator(layer, (options.samples, options.side, options.side, options.channels))
        whole, found = seconds(lambda one=one: lh.spectrum(one, lh.Structured()))
        top, largest = seconds(lambda one=one: lh.spectrum(one, lh.GolubKahan(which="largest", k=1)))
        off = abs(1 - float(largest.lambda_max) / float(found.lambda_max))
        print(
            f"{name:28s} order {one.size:7d}   whole {whole:6.3f} s   the largest {top:6.3f} s   "
            f"ratio {whole / top:5.2f}   off by {off:.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
