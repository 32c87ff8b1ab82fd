"""What XLA's CPU backend runs slowly, as it is and as localhessian runs it: milliseconds, and their ratio.

python benchmarks/cpu.py
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian.linalg import linear_map

CHANNELS, BATCH = 128, 64


def convolution(z, kernel):
    return jax.lax.conv_general_dilated(z, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def depthwise(z, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        z, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=z.shape[-1]
    )


def pulled_pooling(u, z):
    pool = lambda z: jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jax.vjp(pool, z)[1](u)[0]


def pulled_weights(u, z):
    """By the weights of a dense layer."""
    weights = jax.ShapeDtypeStruct((z.shape[-1], u.shape[-1]), z.dtype)
    return jax.linear_transpose(lambda w: z @ w, weights)(u)[0]


def pulled_biases(u, z):
    """By the biases of a dense layer."""
    return jax.linear_transpose(lambda b: b + jnp.zeros_like(z), jax.ShapeDtypeStruct(z.shape[-1:], z.dtype))(u)[0]


def sums_of_images(v, _):
    """As the means of a batch normalization, along several tangents at once."""
    return jax.vmap(lambda v: jnp.sum(v, (0, 1, 2)))(v)


def random(*shape: int):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), "float32")


def cases():
    for image, window in ((2, 3), (4, 5), (4, 7), (3, 3)):
        kernel = random(window, window, CHANNELS, CHANNELS)
        yield (
            f"convolution {window} x {window} of {image} x {image}",
            convolution,
            (BATCH, image, image, CHANNELS),
            kernel,
        )
    for image, channels, each in ((32, 16, 1), (8, 128, 1), (28, 1, 4)):
        name = f"depthwise, {channels} channels to {channels * each}, 3 x 3 of {image} x {image}"
        yield name, depthwise, (BATCH, image, image, channels), random(3, 3, 1, channels * each)
    for image in (8, 32):
        shape = (BATCH, image // 2, image // 2, CHANNELS // 4)
        yield (
            f"transpose of max-pooling to {image} x {image}",
            pulled_pooling,
            shape,
            random(BATCH, image, image, CHANNELS // 4),
        )

    for samples, wide, narrow in ((256, 784, 512), (256, 512, 512), (1024, 128, 512)):
        name = f"by the weights, {samples} samples, {wide} to {narrow}"
        yield name, pulled_weights, (samples, narrow), random(samples, wide)

    for shape in ((256, 512), (1024, 1024), (16, 64, 128)):
        yield f"by the biases, {' x '.join(map(str, shape))}", pulled_biases, shape, random(*shape)

    for shape in ((8, 16, 8, 8, 64), (8, 16, 16, 16, 32)):
        yield f"sums of images, {' x '.join(map(str, shape))}", sums_of_images, shape, random(1)


def milliseconds(function: Callable, *args) -> float:
    jax.block_until_ready(function(*args))
    taken = []
    for _ in range(7):
        begin = time.perf_counter()
        jax.block_until_ready(function(*args))
        taken.append(time.perf_counter() - begin)
    return 1e3 * min(taken)


def main() -> None:
    for name, function, shape, data in cases():
        on_vectors = lambda data, v, function=function, shape=shape: function(v.reshape(shape), data).ravel()
        v = random(int(np.prod(shape)))
        size = jax.eval_shape(on_vectors, data, v).size
        ours = linear_map(Partial(on_vectors, data), None, v.size, size, dtype="float32")
        plain, quick = milliseconds(jax.jit(on_vectors), data, v), milliseconds(ours.mv, v)
        print(f"{name:44s} {plain:7.2f} ms  {quick:7.2f} ms  {plain / quick:5.1f} x", flush=True)


if __name__ == "__main__":
    main()
