"""XLA's options for CPUs: its own, and those of our programs (older loops, of which short ones are not unrolled).

    taskset -c 0 python benchmarks/loops.py

Seconds of compilation and milliseconds of a run of a function, its tangents and its cotangents, the default first, and
whether the numbers are equal to the bit.
"""

import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from localhessian._programs import compiler_options, sums_go_wrong

DEFAULT = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 3}
RUNS = 15


def layer_norm(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)


def batch_norm(x):
    mean = x.mean((0, 1, 2), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean((0, 1, 2), keepdims=True) + 1e-5)


def convolutional_layer(x):
    kernel = random(3, 3, 64, 64)
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.nn.relu(batch_norm(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)))


def pooling(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def random(*shape: int):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), "float32")


def cases() -> Iterator[tuple[str, Callable, jax.Array]]:
    matrix, images = random(1024, 1024), random(64, 16, 16, 64)
    for function in (jnp.tanh, jax.nn.gelu, jax.nn.softmax, layer_norm):
        yield function.__name__, function, matrix
    yield "layer_norm, bfloat16", layer_norm, matrix.astype("bfloat16")
    for function in (batch_norm, convolutional_layer, pooling):
        yield function.__name__, function, images
    yield "batch_norm, small", batch_norm, random(64, 8, 8, 64)
    yield "sum of rows", lambda x: x.sum(0), matrix


def derivatives(function: Callable) -> Iterator[Callable]:
    yield function
    yield lambda x: jax.jvp(function, (x,), (2 * x,))[1]

    def cotangents(x):
        y, pull = jax.vjp(function, x)
        return pull(y)[0]

    yield cotangents


def measured(function: Callable, x: jax.Array, options: dict) -> tuple[float, float, np.ndarray]:
    lowered = jax.jit(function).lower(x)
    begin = time.perf_counter()
    program = lowered.compile(options)
    seconds, taken = time.perf_counter() - begin, []
    out = jax.block_until_ready(program(x))
    for _ in range(RUNS):
        begin = time.perf_counter()
        jax.block_until_ready(program(x))
        taken.append(time.perf_counter() - begin)
    return seconds, 1e3 * float(np.median(taken)), np.asarray(out)


def main() -> None:
    ours = compiler_options()
    if not ours.keys() >= DEFAULT.keys():
        print(f"jaxlib {jaxlib.__version__} does not have these options, or this is no CPU")
        return
    theirs = {name: value for name, value in ours.items() if name not in DEFAULT} | DEFAULT
    print(f"wrong sums: {sums_go_wrong()}; options {ours} against {theirs}")
    for name, function, x in cases():
        each = [[measured(one, x, options) for options in (theirs, ours)] for one in derivatives(function)]
        equal = all(np.array_equal(a[2], b[2]) for a, b in each)
        compilation = " ".join(f"{a[0]:5.2f} {b[0]:5.2f}" for a, b in each)
        run = " ".join(f"{a[1]:6.2f} {b[1]:6.2f}" for a, b in each)
        print(f"{name:22s} compiled {compilation} s   runs {run} ms   equal: {equal}", flush=True)


if __name__ == "__main__":
    main()
