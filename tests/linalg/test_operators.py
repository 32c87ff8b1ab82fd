"""Linear maps and symmetric operators against explicit matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial

import localhessian as lh
from localhessian._tree import pytree
from localhessian.linalg import LinearMap, SymmetricOperator, gram, matrix_map

SHAPES = [(5, 3), (3, 5), (4, 4), (1, 6), (6, 1), (1, 1)]


def times(matrix, v):
    return jnp.einsum("...md,...d->...m", matrix, v, precision="highest")


def transpose_times(matrix, u):
    return jnp.einsum("...md,...m->...d", matrix, u, precision="highest")


SET_UPS = []


@pytree
class LazyMap(LinearMap):
    """A matrix whose products need a set-up, which is counted (when traced or called)."""

    matrix: jax.Array

    def product(self, v, /):
        return self.prepare().product(v)

    def transpose_product(self, u, /):
        return self.prepare().transpose_product(u)

    def prepare(self):
        SET_UPS.append(self.matrix.shape)
        return matrix_map(self.matrix)


@pytree
class LazyOperator(SymmetricOperator):
    """R^T R of such a matrix."""

    matrix: jax.Array

    def product(self, v, /):
        return self.prepare().product(v)

    def prepare(self):
        return gram(matrix_map(self.matrix))


def explicit_map(matrix, rmv=transpose_times):
    m, d = matrix.shape
    return lh.linear_map(Partial(times, matrix), rmv and Partial(rmv, matrix), d, m)


def close(actual, expected, rtol):
    """Equal up to `rtol` of the largest entry of the expected value, which is computed in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("rmv", [transpose_times, None], ids=["rmv given", "rmv derived"])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_map_is_its_matrix(shape, rmv, tol, dtype):
    matrix = networks.drawn(0, *shape)
    v, u = networks.drawn(0, *shape[1:]), networks.drawn(0, *shape[:1])
    wide = np.asarray(matrix, np.float64)
    A = explicit_map(matrix, rmv)
    assert (A.out_size, A.in_size, A.dtype, A.batch) == (*shape, dtype, None)
    close(A.mv(v), wide @ np.asarray(v, np.float64), tol.product)
    close(A.rmv(u), wide.T @ np.asarray(u, np.float64), tol.product)
    np.testing.assert_array_equal(A.to_dense(), matrix)


@pytest.mark.parametrize("rmv", [transpose_times, None], ids=["rmv given", "rmv derived"])
@pytest.mark.parametrize("shape", SHAPES)
def test_transpose_is_the_transposed_matrix(shape, rmv):
    matrix = networks.drawn(0, *shape)
    A = explicit_map(matrix, rmv)
    assert (A.T.out_size, A.T.in_size) == shape[::-1]
    np.testing.assert_array_equal(A.T.to_dense(), matrix.T)
    np.testing.assert_array_equal(A.T.T.to_dense(), matrix)


@given(m=st.integers(1, 6), d=st.integers(1, 6), seed=st.integers(0, 2**31 - 1))
def test_adjoint_identity(m, d, seed):
    rng = np.random.default_rng(seed)
    A = explicit_map(networks.normal(rng, m, d), None)
    v, u = networks.normal(rng, d), networks.normal(rng, m)
    left, right = jnp.vdot(u, A.mv(v)), jnp.vdot(A.rmv(u), v)
    scale = float(jnp.linalg.norm(u) * jnp.linalg.norm(v) * jnp.linalg.norm(A.to_dense()))
    assert abs(float(left - right)) <= 10 * float(jnp.finfo(v.dtype).eps) * scale


def test_functions_without_data_are_accepted(tol):
    A = lh.linear_map(lambda v: 2 * v[:2], None, 3, 2)
    np.testing.assert_array_equal(A.to_dense(), [[2, 0, 0], [0, 2, 0]])
    H = lh.symmetric_operator(lambda v: v[::-1], 3)
    np.testing.assert_array_equal(H.to_dense(), np.eye(3)[::-1])
    close(H.mv(jnp.array([1.0, 2.0, 3.0])), [3, 2, 1], tol.product)


def refuse(_):
    raise AssertionError("the longer side was multiplied")


def test_to_dense_multiplies_on_the_shorter_side():
    np.testing.assert_array_equal(lh.linear_map(lambda v: jnp.tile(v, 2), refuse, 1, 2).to_dense(), [[1], [1]])
    np.testing.assert_array_equal(lh.linear_map(refuse, lambda u: jnp.tile(u, 2), 2, 1).to_dense(), [[1, 1]])


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_dtype_is_kept(name):
    A = lh.linear_map(lambda v: v * 3, None, 2, 2, dtype=name)
    H = lh.symmetric_operator(lambda v: v * 3, 2, dtype=jnp.dtype(name))
    assert A.dtype == A.to_dense().dtype == A.T.to_dense().dtype == jnp.dtype(name)
    assert H.dtype == H.to_dense().dtype == jnp.dtype(name)


def test_default_dtype_follows_jax(dtype):
    assert lh.linear_map(lambda v: v, None, 2, 2).dtype == dtype
    assert lh.symmetric_operator(lambda v: v, 2).dtype == dtype


@pytest.mark.parametrize("shape", [(3, 4, 2), (3, 2, 4)], ids=["tall", "wide"])
def test_batch_of_maps(shape, tol):
    matrices = networks.drawn(0, *shape)
    A = matrix_map(matrices)
    v = networks.drawn(0, 3, shape[2])
    wide = np.asarray(matrices, np.float64)
    assert A.batch == A.T.batch == gram(A).batch == 3
    close(A.mv(v), np.einsum("smd,sd->sm", wide, np.asarray(v, np.float64)), tol.product)
    np.testing.assert_array_equal(A.to_dense(), matrices)
    np.testing.assert_array_equal(A.T.to_dense(), jnp.swapaxes(matrices, 1, 2))
    close(gram(A).to_dense(), np.einsum("smd,sme->sde", wide, wide), tol.product)


def test_gram_keeps_its_factor(tol):
    matrix = networks.drawn(0, 5, 3)
    H = gram(matrix_map(matrix), label="mine")
    wide = np.asarray(matrix, np.float64)
    assert (H.size, H.label) == (3, "mine")
    close(H.to_dense(), wide.T @ wide, tol.product)
    np.testing.assert_array_equal(H.factor.to_dense(), matrix)


def test_symmetric_operator_keeps_its_factor():
    R = matrix_map(networks.drawn(0, 5, 3))
    assert lh.symmetric_operator(lambda v: R.rmv(R.mv(v)), 3, factor=R).factor is R
    assert lh.symmetric_operator(lambda v: v, 3).factor is None


def test_prepare_without_set_up_is_the_operator_itself():
    A = matrix_map(networks.drawn(0, 2, 2))
    H = gram(A)
    assert A.prepare() is A
    assert H.prepare() is H


def test_set_up_runs_once_for_a_prepared_map(dtype):
    matrix = networks.drawn(0, 4, 3)
    A = LazyMap(matrix, size=3, out_size=4, dtype=dtype, label="lazy")
    for operator, expected in [(A, matrix), (A.T, matrix.T)]:
        SET_UPS.clear()
        prepared = operator.prepare()
        assert len(SET_UPS) == 1
        np.testing.assert_array_equal(prepared.to_dense(), expected)
        prepared.mv(jnp.ones(prepared.in_size))
        assert len(SET_UPS) == 1


def test_unprepared_products_prepare_themselves(dtype, tol):
    matrix = networks.drawn(0, 4, 3)
    wide = np.asarray(matrix, np.float64)
    A = LazyMap(matrix, size=3, out_size=4, dtype=dtype)
    H = LazyOperator(matrix, size=3, dtype=dtype)
    close(A.mv(jnp.ones(3)), wide.sum(1), tol.product)
    close(A.rmv(jnp.ones(4)), wide.sum(0), tol.product)
    close(gram(A).mv(jnp.ones(3)), wide.T @ wide.sum(1), tol.product)
    close(H.mv(jnp.ones(3)), wide.T @ wide.sum(1), tol.product)
    close(gram(A).prepare().to_dense(), wide.T @ wide, tol.product)
    close(H.to_dense(), wide.T @ wide, tol.product)


def test_new_numbers_do_not_recompile(count_compilations):
    def use(matrix, v, u):
        A = explicit_map(matrix, None)
        H = lh.symmetric_operator(Partial(times, matrix), 4)
        return A.mv(v), A.rmv(u), A.to_dense(), A.T.to_dense(), gram(A).to_dense(), H.mv(v), H.to_dense()

    first, second = networks.drawn(0, 2, 4, 4)
    with count_compilations() as warm:
        use(first, first[0], first[1])
    assert warm.count > 0
    with count_compilations() as again:
        use(second, second[0], second[1])
    assert again.names == []


def test_operators_pass_through_jit_and_vmap(tol):
    matrices = networks.drawn(0, 3, 5, 2)
    wide = np.asarray(matrices, np.float64)
    expected = np.einsum("smd,sme->sde", wide, wide)
    close(jax.jit(lambda H: H.to_dense())(gram(matrix_map(matrices[0]))), expected[0], tol.product)
    close(jax.vmap(lambda matrix: gram(matrix_map(matrix)).to_dense())(matrices), expected, tol.product)
    operators = jax.vmap(lambda matrix: gram(matrix_map(matrix)))(matrices)
    close(jax.vmap(lambda H: H.mv(jnp.ones(2)))(operators), expected.sum(2), tol.product)


def test_operators_are_pytrees_of_their_data():
    matrix = networks.drawn(0, 3, 2)
    leaves, treedef = jax.tree.flatten(explicit_map(matrix))
    assert [leaf.shape for leaf in leaves] == [(3, 2), (3, 2)]
    doubled = jax.tree.unflatten(treedef, [2 * leaf for leaf in leaves])
    np.testing.assert_array_equal(doubled.to_dense(), 2 * matrix)


def test_operators_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        lh.symmetric_operator(lambda v: v, 2).size = 3


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_must_be_positive(size):
    with pytest.raises(ValueError, match=f"^`size` must be a positive integer, got {size}\\.$"):
        lh.symmetric_operator(lambda v: v, size)
    with pytest.raises(ValueError, match=f"^`in_size` must be a positive integer, got {size}\\.$"):
        lh.linear_map(lambda v: v, None, size, 2)
    with pytest.raises(ValueError, match=f"^`out_size` must be a positive integer, got {size}\\.$"):
        lh.linear_map(lambda v: v, None, 2, size)


@pytest.mark.parametrize("method", [lh.Dense(), lh.Lanczos()])
@pytest.mark.parametrize(
    ("product", "got"),
    [
        (lambda v: v[1:], r"float\d+ of shape \(2,\)"),
        (lambda v: jax.lax.complex(v, v), r"complex\d+ of shape \(3,\)"),
        (lambda v: v.astype(jnp.int32), r"int32 of shape \(3,\)"),
        (lambda v: {"a": v}, "dict"),
    ],
)
def test_products_of_another_kind_are_refused(product, got, method):
    message = rf"`mv` must map a vector of shape \(3,\) to real floats of shape \(3,\), got {got}\."
    with pytest.raises(ValueError, match=message):
        lh.spectrum(lh.symmetric_operator(product, 3), method)
    with pytest.raises(
        ValueError, match=r"`rmv` must map a vector of shape \(2,\) to real floats of shape \(3,\), got"
    ):
        lh.spectrum(lh.linear_map(lambda v: v[1:], lambda u: u, 3, 2), lh.GolubKahan())


def test_operators_print_as_one_line(dtype):
    factor = lh.linear_map(lambda v: 2 * v, None, 300, 300)
    assert repr(factor) == f"LinearMap(300 x 300, {dtype})"
    operators = {f"order 200, {dtype}": lh.symmetric_operator(lambda v: jnp.ones((200, 200), dtype) @ v, 200)}
    many = dataclasses.replace(lh.linear_map(lambda v: v, None, 3, 3), batch=2, label="of mine")
    operators[f"of mine, 3 x 3, {dtype}, batch of 2"] = many
    for words, operator in operators.items():
        kind = "LinearMap" if operator is many else "SymmetricOperator"
        assert repr(operator) == f"{kind}({words})"
