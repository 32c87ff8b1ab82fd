"""One side of one block: what is asked of it agrees with dense Jacobians, and tiny displacements survive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import localhessian as lh
from localhessian._tree import floating, ravel
from localhessian.network import SIDES, Arrangement, ByInput, ByParams, Place
from localhessian.network._side import displaced, matching_loss

DTYPE = jnp.result_type(float)
RANDOM = np.random.default_rng(0)


def numbers(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape), DTYPE)


def two_heads(params, z):
    """Two arrays in and out, and integers that have no derivative."""
    hidden = jnp.tanh(z["a"] @ params["kernel"] + z["b"] * params["scale"][None])
    return {"h": hidden[:, :2], "kind": params["count"] + jnp.zeros(len(hidden), jnp.int32), "rest": hidden[:, 2:] ** 2}


BLOCK = lh.Block("two", two_heads)
PLACE = Place(
    {"kernel": numbers(3, 5), "scale": numbers(5), "count": jnp.asarray(3, jnp.int32)},
    {"a": numbers(4, 3), "b": numbers(4, 5)},
    None,
)


def dense(side):
    """J of the flat outputs by the flat variables, and how it is scaled."""
    leaves, fill = side.variables(PLACE)
    flat, unravel = ravel(leaves)

    def outputs(v):
        there = fill(unravel(v))
        return ravel(floating(two_heads(there.params, there.z))[0])[0]

    scale = 1.0 if isinstance(side, ByInput) else 1 / 4
    return np.asarray(jax.jit(jax.jacfwd(outputs))(flat), np.float64), scale, unravel


@pytest.mark.parametrize("kind", SIDES.values())
def test_products_are_those_of_dense_jacobians(kind, tol):
    side = kind(BLOCK)
    matrix, scale, unravel = dense(side)
    u = [numbers(*leaf.shape) for leaf in floating(two_heads(PLACE.params, PLACE.z))[0]]
    flat = np.asarray(ravel(u)[0], np.float64)
    pulled = jax.jit(lambda u: ravel(side.pull(PLACE)[1](u))[0])(u)
    np.testing.assert_allclose(pulled, scale * matrix.T @ flat, rtol=tol.identity, atol=tol.identity)
    v = numbers(matrix.shape[1])
    for curvature, s in ((None, 1.0), (lambda image: [3 * leaf for leaf in image], 3.0)):
        product = jax.jit(lambda v, s=curvature: ravel(side.gauss_newton(PLACE, s)(unravel(v)))[0])(v)
        wanted = s * scale * matrix.T @ (matrix @ np.asarray(v, np.float64))
        np.testing.assert_allclose(product, wanted, rtol=tol.identity, atol=10 * tol.identity)
    view = side.view(PLACE)
    np.testing.assert_array_equal(view.start, ravel(side.variables(PLACE)[0])[0])
    assert side.sizes(PLACE) == (matrix.shape[1], matrix.shape[0], DTYPE, None)


@pytest.mark.parametrize("kind", SIDES.values())
@pytest.mark.parametrize("size", [1.0, 1e-12])
def test_the_loss_keeps_displacements_of_any_size(kind, size, tol):
    """Beside outputs of order 1 one of 1e-12 is lost to float32 in any difference of two evaluations."""
    side = kind(BLOCK)
    matrix, scale, _ = dense(side)
    outputs = two_heads(PLACE.params, PLACE.z)
    delta = jax.tree.map(
        lambda leaf: size * numbers(*leaf.shape) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, outputs
    )
    flat = np.asarray(ravel(floating(delta)[0])[0], np.float64)
    value, gradient = jax.jit(jax.value_and_grad(side.loss(PLACE, delta)))(side.variables(PLACE)[0])
    np.testing.assert_allclose(value, scale * 0.5 * flat @ flat, rtol=100 * tol.identity)
    wanted = -scale * matrix.T @ flat
    error = np.abs(np.asarray(ravel(gradient)[0]) - wanted).max()
    assert error <= 100 * tol.identity * np.abs(wanted).max()


@pytest.mark.parametrize("kind", SIDES.values())
def test_the_loss_elsewhere_is_its_formula(kind, tol):
    side = kind(BLOCK)
    leaves, fill = side.variables(PLACE)
    there = [leaf + 0.5 * numbers(*leaf.shape) for leaf in leaves]
    moved, outputs = fill(there), floating(two_heads(PLACE.params, PLACE.z))[0]
    delta = two_heads(moved.params, PLACE.z)
    gaps = [
        np.asarray(d, np.float64) - np.asarray(f, np.float64) + np.asarray(c, np.float64)
        for d, f, c in zip(floating(delta)[0], floating(two_heads(moved.params, moved.z))[0], outputs, strict=True)
    ]
    wanted = side.scale(PLACE) * 0.5 * sum(float((gap**2).sum()) for gap in gaps)
    np.testing.assert_allclose(side.loss(PLACE, delta)(there), wanted, rtol=100 * tol.identity)


def test_where_nothing_moves_the_loss_is_that_of_the_displacement():
    """Also where there is no variable, or a number that is no number."""
    place = Place((), jnp.asarray([[1.0, jnp.nan]]), None)
    total = matching_loss(lh.Block("", lambda _, z: jnp.zeros_like(z)), place, jnp.asarray([[3.0, 4.0]]))
    assert total(place) == 12.5
    assert displaced([jnp.asarray([3.0])], [jnp.asarray([1.0])], [jnp.asarray([2.0])]) == 8


@pytest.mark.parametrize("arrangement", Arrangement)
def test_vectors_and_their_leaves(arrangement):
    n = 1 if arrangement is Arrangement.ONE else 3
    leaves = [numbers(n, 2), numbers(n, 2, 2)]
    vector, back = arrangement.lay(leaves)
    assert vector.shape == {Arrangement.BATCH: (18,), Arrangement.ROWS: (3, 6), Arrangement.ONE: (6,)}[arrangement]
    for leaf, again in zip(leaves, back(vector), strict=True):
        np.testing.assert_array_equal(leaf, again)
    if arrangement is not Arrangement.BATCH:
        np.testing.assert_array_equal(np.atleast_2d(vector)[:, :2], leaves[0])


def test_sides_are_keys_of_programs():
    one, other = ByParams(BLOCK.anonymous), ByParams(lh.Block("another name", two_heads).anonymous)
    assert (one, hash(one)) == (other, hash(other))
    assert ByInput(BLOCK) != ByParams(BLOCK)
    assert [(wrt, kind.wrt) for wrt, kind in SIDES.items()] == [("params", "params"), ("input", "input")]
