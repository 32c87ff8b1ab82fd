"""Layers without parameters: hundreds of thousands of small units, which are no objects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import sparse
from scipy.sparse import csgraph

import localhessian as lh
from localhessian.linalg.structure import _block_diagonal, _small_units

LAYERS = {
    "max pooling": lambda z: nn.max_pool(z, (2, 2), (2, 2)),
    "overlapping": lambda z: nn.max_pool(z, (3, 3), (2, 2)),
    "padded": lambda z: nn.max_pool(z, (2, 2), (2, 2), "SAME"),
    "average pooling": lambda z: nn.pool(z, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4,
    "averages that overlap": lambda z: nn.avg_pool(z, (3, 2), (2, 1), "SAME", count_include_pad=False),
    "means": lambda z: z.reshape(-1, 3, 2, 6, 2).mean((2, 4)),
    "relu": jax.nn.relu,
    "tanh": lambda z: jnp.tanh(5 * z),
    "softmax": jax.nn.softmax,
    "neighbors": lambda z: z[:, 1:] + 2 * z[:, :-1],
    "pairs": lambda z: z[:, ::2] - 3 * z[:, 1::2],
    "stacked": lambda z: jnp.stack([3 * z, jnp.tile(jnp.unstack(z, axis=1)[2][:, None], (1, 6, 1, 1))], 2),
    "twice": lambda z: jnp.concatenate([z, z + z], 3),
    "dead": lambda z: 0 * z,
}


def _matching(layer):
    # Ties (whole numbers) and dead units.
    x = jax.device_put(np.random.default_rng(0).integers(-2, 3, (3, 6, 6, 2)).astype(jnp.result_type(float)))
    chain = lh.Chain([lh.Block("layer", lambda w, z: layer(z)), lh.Block("out", lambda w, z: z * w)])
    loss = lambda z, y: 0.5 * jnp.sum(z.reshape(len(z), -1) ** 2, axis=1) + 0 * y
    return lh.back_match(chain, {"layer": {}, "out": jnp.asarray(1.0)}, x, jnp.zeros(3), loss)


@pytest.mark.once
@pytest.mark.parametrize("name", LAYERS)
def test_every_eigenvalue_of_a_layer_without_parameters(name):
    matching = _matching(LAYERS[name])
    for samples in ([0, 1, 2], None):
        operator = lh.local_hessian(matching, "layer", "input", samples=samples)
        rows = np.asarray(operator.factor.to_dense(), np.float64)
        truth = np.linalg.svd(rows, compute_uv=False) ** 2
        truth = np.concatenate([np.zeros((*truth.shape[:-1], operator.size - truth.shape[-1])), truth[..., ::-1]], -1)
        found = lh.spectrum(operator, lh.Structured())
        assert np.all(found.complete)
        lead = (1,) if samples is None else (3,)
        for i in range(lead[0]):
            both = jax.device_get((found.eigenvalues, found.multiplicities))
            values, counts = (np.reshape(part, (*lead, -1))[i] for part in both)
            there = counts > 0
            expanded = np.repeat(values[there], counts[there])
            # The products' own rounding.
            scale = np.reshape(truth, (*lead, -1))[i].max()
            np.testing.assert_allclose(expanded, np.reshape(truth, (*lead, -1))[i], atol=1e-5 * scale)
        kappa = lh.condition_number(found)
        assert np.all((kappa.status == int(lh.Status.ZERO)) == (truth.max(-1) == 0))
        total = lh.trace(operator, lh.Structured()).value
        np.testing.assert_allclose(total, truth.sum(-1), rtol=1e-5)
        ends = lh.spectrum(operator, lh.Structured(blocks=lh.GolubKahan(which="largest", k=1)))
        np.testing.assert_allclose(ends.lambda_max, truth.max(-1), rtol=1e-4)


@pytest.mark.once
def test_no_object_is_made_for_a_small_unit(monkeypatch):
    made = []
    unit = _block_diagonal.Unit
    monkeypatch.setattr(_block_diagonal, "Unit", lambda *args: made.append(args) or unit(*args))
    operators = {name: lh.local_hessian(_matching(LAYERS[name]), "layer", "input") for name in ("relu", "neighbors")}
    blocks = lh.GolubKahan(which="largest", k=1)
    for operator in operators.values():
        for method in (lh.Structured(), lh.Structured(blocks=blocks)):
            assert bool(lh.spectrum(operator, method).complete)
    assert not made
    # The same units as objects.
    stacked = lh.spectrum(operators["neighbors"], lh.Structured())
    monkeypatch.setattr(_small_units, "MOST", 1)
    single = lh.spectrum(operators["neighbors"], lh.Structured())
    assert made
    np.testing.assert_array_equal(single.multiplicities, stacked.multiplicities)
    np.testing.assert_allclose(single.eigenvalues, stacked.eigenvalues, atol=1e-6 * float(stacked.lambda_max))


def _components(seed):
    """Sparse random matrices, some with zero rows and columns, as the components of one; with the matrices."""
    rng = np.random.default_rng(seed)
    rows, columns, maps = rng.integers(1, 30), rng.integers(1, 40), int(rng.integers(1, 4))
    shape = maps, rows, columns
    matrices = rng.integers(-2, 3, shape) * (rng.random(shape) < rng.choice([0.01, 0.1]))
    whole = sparse.coo_matrix(sparse.block_diag([sparse.coo_array(matrix) for matrix in matrices.astype(float)]))
    both = whole.row, whole.col + whole.shape[0]
    size = sum(whole.shape)
    graph = sparse.coo_matrix((np.ones(len(both[0])), both), shape=(size, size))
    labels = csgraph.connected_components(graph, directed=False)[1].astype(np.int64)
    labels[~np.isin(np.arange(size), both)] = -1
    of_row, of_column = np.split(labels, [whole.shape[0]])
    return _small_units.Components(whole, of_row, of_column, maps), matrices


@pytest.mark.once
def test_small_units_of_random_matrices(monkeypatch):
    for seed in range(60):
        components, matrices = _components(seed)
        monkeypatch.setattr(_small_units, "MOST", [4, 50, 10_000][seed % 3])
        stacks, variables, taken = components.stacks()
        of_column = components.unit_of_column.reshape(len(matrices), -1)
        for b, matrix in enumerate(matrices):
            mine = [stack for stack in stacks if stack.batch == b]
            there = (of_column[b] >= 0) & taken[of_column[b]] if len(taken) else np.zeros(matrix.shape[1], bool)
            assert variables[b] == there.sum()
            full = np.pad(matrix[:, there].astype(float), ((0, 0), (0, 1)))  # LAPACK wants a column
            truth = np.sort(np.linalg.svd(full, compute_uv=False))
            for is_double, atol in ((True, 1e-12), (False, 1e-6)):  # Gram matrices square: sqrt(eps)
                parts = [stack.part(is_double) for stack in mine]
                found = np.concatenate([[], *(np.repeat(part.singular_values, part.copies) for part in parts)])
                np.testing.assert_allclose(np.sort(found[found > atol]), truth[truth > atol], rtol=1e-9)
            squares = sum((stack.squares() for stack in mine), np.zeros(2))
            np.testing.assert_allclose(squares, [np.sum(np.power(truth, 2)), np.sum(np.power(truth, 4))], atol=1e-9)
