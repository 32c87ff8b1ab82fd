"""What a chain cut from a model must do, whatever the model: answer and differentiate like it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def _relative(one, two):
    one, two = jax.device_get((one, two))
    difference = jax.tree.map(np.subtract, one, two)
    return _largest(difference) / _largest(two)


def _largest(tree):
    return max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(tree))


def _output_sum(output):
    weights = [jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape) for leaf in jax.tree.leaves(output)]
    return sum(jnp.sum(w * leaf) for w, leaf in zip(weights, jax.tree.leaves(output), strict=True))


@pytest.fixture
def check_cut(tol):
    """Forward values and gradients of the chain against those of the model, and split and merge."""

    def check(cut, model, params, x, context=None):
        """`model(params, x)` is the whole model; `context` is what the chain gets."""
        chain = cut.chain

        def of_blocks(p):
            output = chain.forward(p, x, context)[-1]
            return _output_sum(output), output

        def of_model(p):
            output = model(p, x)
            return _output_sum(output), output

        (_, output), blocks = jax.jit(jax.value_and_grad(of_blocks, has_aux=True))(cut.params)
        (_, truth), whole = jax.jit(jax.value_and_grad(of_model, has_aux=True))(params)
        assert jax.tree.structure(output) == jax.tree.structure(truth)
        assert _relative(output, truth) <= 3 * tol.identity
        merged = chain.merge(blocks, tied="sum")
        assert jax.tree.structure(merged) == jax.tree.structure(whole)
        assert _relative(merged, whole) <= 3 * tol.identity
        assert _largest(jax.device_get(whole)) > 0
        back = chain.merge(chain.split(params), like=params)
        for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(one, two)

    return check
