"""Local Hessians over streams: the same figures as of one batch, and memory that does not grow with the data.

    python benchmarks/streams.py [--samples 250 1000 4000] [--batch 125]

Each line is a process of its own, so that its peak is its own: two convolutions, a dense layer and a last block, in one
batch, and over a stream that makes each batch when it is asked for one.
"""

import argparse
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import localhessian as lh

SHAPE, CLASSES = (32, 32, 3), 10


def network():
    numbers = ("NHWC", "HWIO", "NHWC")

    def conv(stride, w, z):
        return jax.nn.relu(jax.lax.conv_general_dilated(z, w, (stride,) * 2, "SAME", dimension_numbers=numbers))

    blocks = {
        "conv1": lambda w, z: conv(1, w, z),
        "pool": lambda w, z: z.reshape(len(z), 8, 4, 8, 4, -1).mean((2, 4)),
        "conv2": lambda w, z: conv(2, w, z),
        "flat": lambda w, z: z.reshape(len(z), -1),
        "dense": lambda w, z: jax.nn.relu(z @ w),
        "head": lambda w, z: z @ w,
    }
    chain = lh.Chain([lh.Block(name, apply) for name, apply in blocks.items()])
    random = np.random.default_rng(0)
    shapes = {"conv1": (3, 3, 3, 16), "conv2": (3, 3, 16, 16), "dense": (256, 32), "head": (32, CLASSES)}
    scaled = lambda shape: jnp.asarray(random.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)
    return chain, {name: scaled(shape) for name, shape in shapes.items()}


def batch(number, size):
    random = np.random.default_rng(number)
    return random.normal(size=(size, *SHAPE)).astype(np.float32), random.integers(0, CLASSES, size)


def one(how, samples, size):
    sizes = [size] * (samples // size) + ([samples % size] if samples % size else [])
    if how == "stream":
        x, y = lh.Stream(lambda: (batch(i, n) for i, n in enumerate(sizes))), None
    else:
        x, y = (np.concatenate(parts) for parts in zip(*(batch(i, n) for i, n in enumerate(sizes)), strict=True))
    start = time.perf_counter()
    chain, params = network()
    report = lh.analyze(chain, params, x, y, optax.softmax_cross_entropy_with_integer_labels, wrt="params")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    kappas = "  ".join(f"{row.block} {row.kappa_q05:.5g}" for row in report.rows if row.has_figures)
    print(f"{how:9s} {samples:7d} samples  {seconds:6.1f} s  peak {peak:5.2f} GiB   kappa_q05: {kappas}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[250, 1000, 4000])
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--one", choices=["batch", "stream"])
    given = parser.parse_args()
    if given.one:
        one(given.one, given.samples[0], given.batch)
        return
    for samples in given.samples:
        for how in ("batch", "stream"):
            command = [sys.executable, __file__, "--one", how, "--samples", str(samples), "--batch", str(given.batch)]
            if subprocess.run(command, check=False).returncode:
                print(f"{how:9s} {samples:7d} samples  failed: out of memory?", flush=True)


if __name__ == "__main__":
    main()
