"""Numbers and derivatives that are not finite: the sentence names block, operation and line."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import localhessian as lh
from localhessian.network import back_match_partly

pytestmark = pytest.mark.once

X = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)


def squares(z, y):
    return 0.5 * jnp.sum((z - y) ** 2, axis=1)


def match(apply, x=X, loss=squares, matched=lh.back_match):
    chain = lh.Chain([lh.Block("a", lambda p, z: z * p), lh.Block("b", apply), lh.Block("c", lambda p, z: z * p)])
    return matched(chain, {"a": jnp.ones(()), "b": jnp.ones(()), "c": jnp.ones(())}, x, jnp.ones((4, 3)), loss)


def norm_of_rows(p, z):
    return p * z + jnp.linalg.norm(z, axis=1, keepdims=True)


def masked(p, z):
    scores = jnp.where(jnp.arange(4)[:, None] > 0, p * z, -jnp.inf)
    return jax.nn.softmax(scores, axis=1)


def standardized(p, z):
    return p * z / jnp.std(z - z, axis=1, keepdims=True)


def exploding(p, z):
    return jnp.exp(1e4 * p * jnp.abs(z))


CASES = {
    norm_of_rows: ("the derivative of block `b` by its input is not finite", "an undefined operation", ""),
    masked: ("the output of block `b` is not finite", "an undefined operation", "in `sub`"),
    standardized: ("the output of block `b` is not finite", "an undefined operation", "in `div` at "),
    exploding: ("the output of block `b` is not finite", "an overflow", "in `exp` at "),
}


@pytest.mark.parametrize("apply", CASES, ids=lambda apply: apply.__name__)
def test_the_sentence_names_block_kind_and_operation(apply):
    what, why, operation = CASES[apply]
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match=re.escape(what)) as raised:
        match(apply, X.at[0].set(0.0))
    assert why in str(raised.value)
    assert operation in str(raised.value)
    assert "overflow" not in str(raised.value) or apply is exploding
    if operation.endswith(" at "):
        assert f"test_finite.py:{apply.__code__.co_firstlineno + 1} (`{apply.__name__}`)" in str(raised.value)


def test_an_operation_inside_a_scan_is_named():
    """By a product: the body takes other operands than the scan does."""

    def row_by_row(p, z):
        return lax.scan(lambda count, row: (count + 1, p * jnp.log(row @ jnp.eye(3) - 0.5)), 0, jnp.abs(z))[1]

    with pytest.raises(ValueError, match=r"the output of block `b` is not finite.*an undefined operation") as raised:
        match(row_by_row)
    assert "first in `log` at " in str(raised.value)


def test_the_loss_is_named():
    with pytest.raises(ValueError, match=r"the loss is not finite: .*in `log` at .*test_finite\.py"):
        match(lambda p, z: p * z, loss=lambda z, y: jnp.log(z[:, 0]))
    with pytest.raises(ValueError, match="the derivative of the loss by the network's output is not finite"):
        match(lambda p, z: p * z, loss=lambda z, y: jnp.sqrt(jnp.sum((z - z) ** 2, axis=1)))


def test_one_block_without_a_derivative_leaves_the_others():
    with jax.numpy_rank_promotion("allow"):
        matching = match(norm_of_rows, X.at[0].set(0.0), matched=back_match_partly)
    assert np.isfinite(matching.residuals[2]).all()
    assert np.isnan(matching.residuals[1][0]).all()
    np.testing.assert_array_equal(lh.local_hessian(matching, "c").to_dense().shape, (1, 1))
    assert np.isfinite(lh.local_hessian(matching, "a").to_dense()).all()
