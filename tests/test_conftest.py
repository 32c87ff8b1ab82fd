"""The instruments themselves: a gauge that cannot move proves nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.once


def test_count_compilations_counts_new_programs_only(count_compilations):
    function = jax.jit(lambda x: jnp.sin(x) * 3)
    two, other_two, three = np.ones(2, np.float32), np.zeros(2, np.float32), np.ones(3, np.float32)
    with count_compilations() as first:
        function(two)
    with count_compilations() as again:
        function(other_two)
    with count_compilations() as new_shape:
        function(three)
    assert (first.count, again.count, new_shape.count) == (1, 0, 1)
    assert "lambda" in first.names[0]


def test_count_compilations_stops_listening(count_compilations):
    with count_compilations() as seen:
        pass
    jax.jit(lambda x: x - 7)(np.ones(2, np.float32))
    assert seen.count == 0


def test_dtype_promotion_is_strict():
    with pytest.raises(jax.dtypes.TypePromotionError, match="promotion"):
        jnp.ones(2, jnp.float32) + jnp.ones(2, jnp.int32)


def test_rank_promotion_raises():
    with pytest.raises(ValueError, match="rank_promotion='raise'"):
        jnp.ones((2, 2)) + jnp.ones(2)


@pytest.mark.relaxed
def test_relaxed_marker_allows_promotion():
    total = jnp.ones((2, 2), jnp.float32) + jnp.ones(2, jnp.int32)
    assert total.shape == (2, 2)
    assert float(total[0, 0]) == 2.0


@pytest.mark.optimized
def test_optimized_marker_has_xla_optimize():
    assert not jax.config.values["jax_disable_most_optimizations"]


def test_tolerances_follow_the_dtype(tol, dtype):
    assert tol.identity == (1e-12 if dtype == np.float64 else 1e-5)
