"""What a chain cut from a model must do, whatever the model: answer and differentiate like it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def _relative(one, two):
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))
    scale = max(float(jnp.max(jnp.abs(b))) for _, b in pairs)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs) / scale


def _output_sum(output):
    weights = [jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape) for leaf in jax.tree.leaves(output)]
    return sum(jnp.sum(w * leaf) for w, leaf in zip(weights, jax.tree.leaves(output), strict=True))


@pytest.fixture
def tolerance():
    return 1e-12 if jax.config.jax_enable_x64 else 2e-5


@pytest.fixture
def check_cut(tolerance):
    """Forward values and gradients of the chain against those of the model, and split and merge."""

    def check(cut, model, params, x, context=None):
        """`model(params, x)` is the whole model; `context` is what the chain gets."""
        chain = cut.chain
        output = jax.jit(chain.forward)(cut.params, x, context)[-1]
        truth = jax.jit(model)(params, x)
        assert jax.tree.structure(output) == jax.tree.structure(truth)
        assert _relative(output, truth) <= tolerance
        blocks = jax.jit(jax.grad(lambda p: _output_sum(chain.forward(p, x, context)[-1])))(cut.params)
        whole = jax.jit(jax.grad(lambda p: _output_sum(model(p, x))))(params)
        merged = chain.merge(blocks, tied="sum")
        assert jax.tree.structure(merged) == jax.tree.structure(whole)
        assert _relative(merged, whole) <= tolerance
        assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(whole)) > 0
        back = chain.merge(chain.split(params), like=params)
        for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(one, two)

    return check


@pytest.fixture
def standard_promotion():
    """Flax and equinox rely on the implicit promotions that the tests of our own code forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
