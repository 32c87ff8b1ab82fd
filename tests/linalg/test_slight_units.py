"""Layers without parameters: hundreds of thousands of units of one row or one column, which are no objects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import localhessian as lh
from localhessian.linalg import _block_diagonal

LAYERS = {
    "max pooling": lambda z: nn.max_pool(z, (2, 2), (2, 2)),
    "overlapping": lambda z: nn.max_pool(z, (3, 3), (2, 2)),
    "padded": lambda z: nn.max_pool(z, (2, 2), (2, 2), "SAME"),
    "relu": jax.nn.relu,
    "tanh": lambda z: jnp.tanh(5 * z),
    "neighbors": lambda z: z[:, 1:] + 2 * z[:, :-1],
    "pairs": lambda z: z[:, ::2] - 3 * z[:, 1::2],
    "twice": lambda z: jnp.concatenate([z, z + z], 3),
}


def _matching(layer):
    # Ties (whole numbers) and dead units.
    x = np.random.default_rng(0).integers(-2, 3, (3, 6, 6, 2)).astype(np.zeros(()).dtype)
    x = jnp.asarray(x, jnp.result_type(float))
    chain = lh.Chain([lh.Block("layer", lambda w, z: layer(z)), lh.Block("out", lambda w, z: z * w)])
    loss = lambda z, y: 0.5 * jnp.sum(z.reshape(len(z), -1) ** 2, axis=1) + 0 * y
    return lh.back_match(chain, {"layer": {}, "out": jnp.asarray(1.0)}, x, jnp.zeros(3), loss)


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
            values, counts = (np.reshape(part, (*lead, -1))[i] for part in (found.eigenvalues, found.multiplicities))
            there = counts > 0
            expanded = np.repeat(values[there], counts[there])
            # The products' own rounding.
            scale = np.reshape(truth, (*lead, -1))[i].max()
            np.testing.assert_allclose(expanded, np.reshape(truth, (*lead, -1))[i], atol=1e-5 * scale)
        total = lh.trace(operator, method="structured").value
        np.testing.assert_allclose(total, truth.sum(-1), rtol=1e-5)
        ends = lh.spectrum(operator, lh.Structured(blocks=lh.GolubKahan(which="largest", k=1)))
        np.testing.assert_allclose(ends.lambda_max, truth.max(-1), rtol=1e-4)


@pytest.mark.once
def test_no_object_is_made_for_a_unit_of_one_row_or_one_column(monkeypatch):
    made = []
    unit = _block_diagonal.Unit
    monkeypatch.setattr(_block_diagonal, "Unit", lambda *args: made.append(args) or unit(*args))
    for name in ("max pooling", "relu", "tanh", "pairs"):
        lh.spectrum(lh.local_hessian(_matching(LAYERS[name]), "layer", "input"), lh.Structured())
    assert not made
    lh.spectrum(lh.local_hessian(_matching(LAYERS["neighbors"]), "layer", "input"), lh.Structured())
    assert made  # chains of variables, as they were
