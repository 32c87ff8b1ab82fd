"""Programs rewritten for XLA's CPU backend give the same numbers, and are rewritten where they should be."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.tree_util import Partial

import localhessian as lh
from localhessian.linalg.operators import _cpu

ON_CPU = jax.default_backend() == "cpu"
EPS = float(jnp.finfo(jnp.result_type(float)).eps)


def random(seed, *shape):
    return jax.device_put(np.random.default_rng(seed).standard_normal(shape).astype(jnp.result_type(float)))


def run_quickly(function, *args):
    return _cpu.run_quickly(Partial(function), *args)


def programs(function, *args):
    """The text of the program as it is, and as it is run."""
    return str(jax.make_jaxpr(function)(*args)), str(jax.make_jaxpr(lambda *a: run_quickly(function, *a))(*args))


def close(one, two):
    np.testing.assert_allclose(one, two, rtol=1e3 * EPS, atol=1e3 * EPS * float(np.max(np.abs(two))))


@pytest.mark.once
@settings(max_examples=16)
@given(data=st.data())
def test_convolutions_of_small_images(data):
    """Any window, stride, dilation, padding and number of groups; the result and its transposes."""
    dimensions = data.draw(st.integers(1, 2))
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dimensions))
    image, window, stride, dilation = draw(1, 4), draw(1, 4), draw(1, 2), draw(1, 2)
    padding = tuple(
        (low + (w - 1) * d, high) for low, high, w, d in zip(draw(-1, 2), draw(0, 2), window, dilation, strict=True)
    )
    groups = data.draw(st.integers(1, 2))
    z, kernel = random(0, 2, *image, 2 * groups), random(1, *window, 2, 3 * groups)
    letters = "HW"[:dimensions]

    def apply(z, kernel, padding=padding):
        return lax.conv_general_dilated(
            z,
            kernel,
            stride,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            feature_group_count=groups,
        )

    def padded_before(z, kernel):
        """Padding by itself has a derivative without negative padding, which jaxlib 0.10 gets wrong."""
        z = lax.pad(z, jnp.zeros((), z.dtype), [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])
        return apply(lax.optimization_barrier(z), kernel, "VALID")

    def both(apply, z, kernel):
        out, pull = jax.vjp(apply, z, kernel)
        return out, pull(jnp.cos(out))

    if 0 in jax.eval_shape(apply, z, kernel).shape:
        return
    ours = run_quickly(lambda z, kernel: both(apply, z, kernel), z, kernel)
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(both(padded_before, z, kernel)), strict=True):
        close(one, two)


def padded(kernel, low, high, step):
    """A chain with such a layer, its parameters and loss."""

    def layer(kernel, z):
        return lax.conv_general_dilated(z, kernel, (step,), [(low, high)], dimension_numbers=("NWC", "WIO", "NWC"))

    scaled = lambda w, z: w * z.reshape(len(z), -1)
    chain = lh.Chain([lh.Block("in", lambda w, z: w * z), lh.Block("conv", layer), lh.Block("head", scaled)])
    params = {"in": jnp.ones(()), "conv": kernel, "head": jnp.ones(())}
    return chain, params, lambda z, y: 0.5 * ((z - y) ** 2).sum(1)


@pytest.mark.once
@pytest.mark.parametrize(
    ("size", "window", "low", "high", "step"),
    [(1, 3, 3, 1, 1), (2, 3, 4, 0, 1), (3, 3, 3, 1, 1), (2, 4, 5, 2, 1), (3, 3, 4, 1, 2), (1, 1, 5, 0, 3)],
)
def test_a_layer_that_pads_by_more_than_its_window(size, window, low, high, step):
    """Its transpose has negative padding, for which jaxlib 0.10 reads what is not there; every route against NumPy."""
    n, c, d = 2, 3, 2
    z, kernel = random(0, n, size, c), random(1, window, c, d)
    places = (size + low + high - window) // step + 1
    J = np.zeros((places, d, size, c))
    for at in range(places):
        for tap in range(window):
            if 0 <= at * step + tap - low < size:
                J[at, :, at * step + tap - low] += np.asarray(kernel, np.float64)[tap].T
    J = J.reshape(places * d, size * c)
    chain, params, loss = padded(kernel, low, high, step)
    matching = lh.back_match(chain, params, z, jnp.zeros((n, places * d)), loss)
    H = lh.local_hessian(matching, "conv", "input", samples=0)
    v = random(2, size * c)
    close(H.mv(v), jnp.asarray(J.T @ (J @ np.asarray(v, np.float64)), v.dtype))
    close(H.to_dense(), jnp.asarray(J.T @ J, v.dtype))
    outputs = np.asarray(matching.activations[2], np.float64).reshape(n, -1)
    close(matching.displacements[1].reshape(n, -1), jnp.asarray(-outputs @ J, v.dtype))
    gradient = np.mean(np.sum(np.asarray(z, np.float64).reshape(n, -1) * (outputs @ J), axis=1))
    y = jnp.zeros((n, places * d))
    propagated = lambda params: lh.propagate(chain, params, z, y, loss, lh.GradientStep(1.0))
    for run in (propagated, jax.jit(propagated)):
        close(1 - run(params)[0]["in"], jnp.asarray(gradient, v.dtype))


@pytest.mark.once
def test_identities_of_a_layer_that_pads_by_more_than_its_window_hold():
    """What they compare with are plain gradients, which jaxlib 0.10 gets wrong: they blamed the layer."""
    chain, params, loss = padded(random(1, 4, 3, 2), 5, 2, 1)
    assert lh.check_identities(chain, params, random(0, 2, 2, 3), jnp.zeros((2, 12)), loss)


def wide(z, kernel):
    return lax.conv_general_dilated(z, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only the CPU needs it")
@pytest.mark.parametrize("around", [lambda f: f, jax.jit, jax.checkpoint, lambda f: jax.jit(jax.jit(f))])
def test_a_window_larger_than_its_image_is_found_at_any_depth(around):
    z, kernel = random(0, 2, 2, 2, 3), random(1, 3, 3, 3, 4)
    before, after = programs(around(wide), z, kernel)
    assert "optimization_barrier" in after
    assert "optimization_barrier" not in before
    close(run_quickly(around(wide), z, kernel), wide(z, kernel))


def test_an_image_that_holds_its_window_is_left_alone():
    before, after = programs(wide, random(0, 2, 3, 3, 3), random(1, 3, 3, 3, 4))
    assert "optimization_barrier" not in before + after


@pytest.mark.parametrize("layout", ["NHWC HWIO NHWC", "NCHW OIHW NCHW", "CNHW IHWO NHWC"])
@pytest.mark.parametrize(
    ("stride", "padding", "holes", "apart", "channels", "each"),
    [
        ((1, 1), "SAME", (1, 1), (1, 1), 3, 2),
        ((2, 1), [(1, 2), (-1, 3)], (2, 1), (1, 2), 4, 1),
        ((1, 2), "VALID", (1, 1), (2, 1), 1, 5),
    ],
)
def test_a_convolution_channel_by_channel(layout, stride, padding, holes, apart, channels, each):
    """Depthwise, or of gray images: a sum of shifted images, and nothing of it is left as a convolution on the CPU."""
    letters = layout.split()
    image, window = {"N": 2, "C": channels, "H": 7, "W": 6}, {"H": 3, "W": 2, "I": 1, "O": channels * each}
    z, kernel = random(0, *map(image.get, letters[0])), random(1, *map(window.get, letters[1]))

    def apply(z, kernel):
        return lax.conv_general_dilated(z, kernel, stride, padding, holes, apart, letters, channels)

    close(run_quickly(apply, z, kernel), apply(z, kernel))
    before, after = programs(apply, z, kernel)
    assert "conv_general_dilated" in before
    assert ("conv_general_dilated" in after) == (jax.default_backend() != "cpu")


def test_products_of_half_precision_are_summed_in_what_was_asked_for():
    z, kernel = (random(i, *shape).astype(jnp.bfloat16) for i, shape in enumerate([(2, 5, 5, 3), (3, 3, 1, 6)]))
    apply = lambda z, kernel: lax.conv_general_dilated(
        z, kernel, (1, 1), "SAME", None, None, ("NHWC", "HWIO", "NHWC"), 3, preferred_element_type=jnp.float32
    )
    found = run_quickly(apply, z, kernel)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, apply(z, kernel), rtol=0, atol=1e-5)  # of nine products of size 1


def test_a_convolution_across_channels_or_by_a_large_window_is_left_alone():
    """Or of gray images to many channels by a middling one, as patches are embedded."""
    windows = ((5, 2, (3, 3, 2, 4)), (9, 1, (9, 9, 1, 1)), (9, 1, (8, 8, 1, 16)))
    for size, channels, window in windows:
        z, kernel = random(0, 2, size, size, channels), random(1, *window)
        before, after = programs(wide, z, kernel)
        assert before.count("conv_general_dilated") == after.count("conv_general_dilated") == 1


def pooled(z, window, stride, padding="VALID"):
    return lax.reduce_window(z, -jnp.inf, lax.max, window, stride, padding)


@settings(max_examples=8)
@given(tiles=st.tuples(*4 * [st.integers(1, 3)]), window=st.tuples(*4 * [st.integers(1, 3)]), seed=st.integers(0, 99))
def test_transpose_of_max_pooling(tiles, window, seed):
    """To the bit, also where several elements of a window are the largest."""
    shape = [count * width for count, width in zip(tiles, window, strict=True)]
    z = jnp.round(random(seed, *shape))
    u = random(seed + 1, *tiles)

    def pull(z, u):
        return jax.vjp(lambda z: pooled(z, window, window), z)[1](u)[0]

    np.testing.assert_array_equal(run_quickly(pull, z, u), pull(z, u))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only the CPU needs it")
@pytest.mark.parametrize(
    ("stride", "padding", "replaced"), [((1, 2, 2, 1), "VALID", True), ((1, 1, 1, 1), "SAME", False)]
)
def test_max_pooling_with_overlap_is_left_alone(stride, padding, replaced):
    z = random(0, 2, 4, 4, 3)
    pool = lambda z: pooled(z, (1, 2, 2, 1), stride, padding)
    pull = lambda z, u: jax.vjp(pool, z)[1](u)[0]
    before, after = programs(pull, z, pool(z))
    assert "select_and_scatter_add" in before
    assert ("select_and_scatter_add" not in after) == replaced
    np.testing.assert_array_equal(run_quickly(pull, z, pool(z)), pull(z, pool(z)))


@pytest.mark.once
@settings(max_examples=8)
@given(data=st.data())
def test_sums_of_any_axes(data):
    """Those over leading axes of up to three are products with ones on the CPU."""
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    a = random(len(shape), *shape)
    leads = len(axes) < len(shape) <= 3 and axes == set(range(len(axes)))
    add = lambda a: jnp.sum(a, tuple(axes))
    before, after = programs(add, a)
    assert "reduce_sum" in before
    assert ("reduce_sum" in after) == (not (leads and ON_CPU))
    close(run_quickly(add, a), np.sum(np.asarray(a, np.float64), tuple(axes)))
    pull = lambda a: jax.vjp(lambda a: jnp.sin(add(a)), a)[1](jnp.cos(add(a)))[0]
    close(run_quickly(pull, a), pull(a))
    close(jax.vmap(lambda a: run_quickly(add, a))(jnp.stack([a, 2 * a])), jnp.stack([add(a), 2 * add(a)]))


def test_a_sum_of_no_numbers_is_zero():
    np.testing.assert_array_equal(run_quickly(lambda a: a.sum(0), jnp.ones((0, 3))), np.zeros(3))


@pytest.mark.parametrize("rows", [7, 64, 97, 20_000, 65_536, 65_537])
def test_long_sums_over_leading_axes_lose_no_digits(rows):
    """By one product the error of 65,536 terms around one is 40 roundings; those of a large prime number stay a sum."""
    a = 1 + random(rows, rows, 3)
    exact, scale = ([math.fsum(column) for column in np.asarray(terms, np.float64).T] for terms in (a, jnp.abs(a)))
    assert np.max(np.abs(np.asarray(run_quickly(lambda a: a.sum(0), a), np.float64) - exact) / scale) < 8 * EPS
    assert ("reduce_sum" in programs(lambda a: a.sum(0), a)[1]) == (rows == 65_537 or not ON_CPU)


def test_sums_over_each_of_several_images_lose_no_digits():
    """As `vmap` makes them of batch normalization; those over one image stay sums."""
    a = 1 + random(0, 3, 8, 16, 16, 2)
    add = lambda a: a.sum((0, 1, 2))
    wide = np.asarray(a, np.float64).reshape(3, -1, 2)
    exact = np.asarray([[math.fsum(column) for column in image.T] for image in wide])
    found = np.asarray(run_quickly(jax.vmap(add), a), np.float64)
    assert np.max(np.abs(found - exact) / np.abs(wide).sum(1)) < 8 * EPS
    assert ("reduce_sum" in programs(jax.vmap(add), a)[1]) != ON_CPU
    assert "reduce_sum" in programs(add, a[0])[1]


def test_sums_of_integers_and_of_half_precision_stay_sums():
    add = lambda a: jnp.sum(a, 0)
    transposed = lambda a: jax.linear_transpose(lambda b: jnp.broadcast_to(b, a.shape), a[0])(a)[0]
    for of, run in ((jnp.int32, add), (bool, add), (jnp.bfloat16, transposed)):
        a = jnp.ones((1000, 2), of)
        assert "reduce_sum" in programs(run, a)[1]
        np.testing.assert_array_equal(run_quickly(run, a), run(a))


def test_equations_without_a_result_go_through():
    seen = []

    def watched(v):
        jax.debug.callback(seen.append, v)
        return 2 * v

    np.testing.assert_array_equal(run_quickly(watched, jnp.ones(3)), 2 * np.ones(3))
    jax.effects_barrier()
    assert len(seen) == 1


def test_batches_and_derivatives_go_through():
    z, kernel = random(0, 3, 2, 2, 2, 3), random(1, 3, 3, 3, 4)
    run = lambda z: run_quickly(wide, z, kernel)
    close(jax.vmap(run)(z), jax.vmap(lambda z: wide(z, kernel))(z))
    close(
        jax.grad(lambda z: jnp.sum(jnp.sin(run(z))))(z[0]), jax.grad(lambda z: jnp.sum(jnp.sin(wide(z, kernel))))(z[0])
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only the CPU needs it")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "contracted"),
    [
        ((120, 90), (120, 110), ((0,), (0,))),
        ((12, 10, 90), (10, 110, 12), ((0, 1), (2, 0))),
        ((12, 10, 9, 10), (12, 10, 11, 10), ((1, 0), (1, 0))),
    ],
)
def test_a_product_with_a_transpose_is_turned_upright(first, second, contracted, turned):
    def multiply(a, b):
        product = lax.dot_general(a, b, (contracted, ((), ())), precision="highest")
        return jnp.transpose(product) if turned else product

    a, b = random(0, *first), random(1, *second)
    before, after = programs(multiply, a, b)
    assert "optimization_barrier" in after
    assert "optimization_barrier" not in before
    close(run_quickly(multiply, a, b), multiply(a, b))
    both = lambda run: jax.vmap(run)(jnp.stack([a, 2 * a]), jnp.stack([b, b]))
    close(both(lambda a, b: run_quickly(multiply, a, b)), both(multiply))


@pytest.mark.parametrize(
    ("first", "second", "numbers"),
    [
        ((30, 20), (30, 25), (((0,), (0,)), ((), ()))),  # small
        ((110, 120), (120, 110), (((1,), (0,)), ((), ()))),  # upright
        ((3, 120, 90), (3, 120, 110), (((1,), (1,)), ((0,), (0,)))),  # a batch of products
        ((2000,), (2000, 900), (((0,), (0,)), ((), ()))),  # a vector
    ],
)
def test_other_products_are_left_alone(first, second, numbers):
    before, after = programs(lambda a, b: lax.dot_general(a, b, numbers), random(0, *first), random(1, *second))
    assert "optimization_barrier" not in before + after
