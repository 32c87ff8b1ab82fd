"""What cannot be cut is refused in one sentence, or carried when asked."""

import re

import jax
import jax.numpy as jnp
import pytest
from marked import X, mlp, mlp_params
from networks import drawn

import localhessian as lh

pytestmark = pytest.mark.once


def jumping(params, x):
    early = jnp.tanh(x @ params["a"])
    h = lh.mark(early @ params["b"], "middle")
    return h @ params["c"] + early


JUMPING = {"a": drawn(0, 3, 2), "b": drawn(1, 2, 4), "c": drawn(2, 4, 2)}


def test_a_jumping_value_is_named():
    with pytest.raises(lh.CutError) as caught:
        lh.chain_from_function(jumping, JUMPING, X)
    message = str(caught.value)
    assert "the boundary `middle` does not cut" in message
    assert re.search(r"float(32|64)\[6,2\], made in block `middle` at .*test_cut_refused.py:\d+ \(`jumping`\)", message)
    assert re.search(r"used in block `output` at .*test_cut_refused.py:\d+", message)
    assert "`z, value = lh.mark((z, value), 'middle')`" in message
    assert "move the boundary" in message


def test_a_jumping_value_is_carried_when_asked(check_cut):
    cut = lh.chain_from_function(jumping, JUMPING, X, carry=True)
    check_cut(cut, jumping, JUMPING, X)
    assert [leaf.shape for leaf in cut.chain.forward(cut.params, X)[1]] == [(6, 4), (6, 2)]


def test_carried_over_several_boundaries(check_cut):
    def model(params, x):
        h = skip = lh.mark(x @ params[0], "l0")
        for i in (1, 2, 3):
            h = lh.mark(jnp.tanh(h @ params[i]), f"l{i}")
        return h + skip

    params = [drawn(i, 3, 3) for i in range(4)]
    with pytest.raises(lh.CutError, match="made in block `l0`"):
        lh.chain_from_function(model, params, X)
    cut = lh.chain_from_function(model, params, X, carry=True)
    check_cut(cut, model, params, X)
    assert [len(jax.tree.leaves(z)) for z in cut.chain.forward(cut.params, X)] == [1, 1, 2, 2, 2, 1]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda p, x: x @ p["a"], "`fn` holds no marks"),
        (lambda p, x: x @ (lh.mark(p["a"], "weights") * 1), "marks a value that does not depend on the input"),
        (
            lambda p, x: lh.mark(x @ p["a"], "side") * 0 if lh.mark(x @ p["a"], "b") is None else x @ p["a"] * 2,
            "does not",
        ),
        (lambda p, x: jax.lax.map(lambda row: lh.mark(row @ p["a"], "row"), x) @ p["b"], "does not"),
        (lambda p, x: jax.lax.cond(True, lambda: lh.mark(x @ p["a"], "in cond"), lambda: x), "inside `cond`"),
    ],
)
def test_marks_that_cannot_cut(model, message):
    with pytest.raises(ValueError, match=message):
        lh.chain_from_function(model, {"a": drawn(0, 3, 3), "b": drawn(1, 3, 3)}, X)


def test_bad_arguments():
    params = mlp_params()
    with pytest.raises(ValueError, match=r"parameter `layers.0.bias` has the type int32.*Put it into `context`"):
        lh.chain_from_function(mlp, {"layers": [{"kernel": X.T, "bias": jnp.arange(6, dtype=jnp.int32)}]}, X)
    with pytest.raises(ValueError, match=re.escape("`fn` takes only (params, x)")):
        lh.chain_from_function(mlp, params, X, jnp.ones(3))
    with pytest.raises(TypeError, match="`name` of a mark must be a string, got int"):
        lh.mark(X, 3)
    with pytest.raises(ValueError, match="`z` holds no array"):
        lh.mark((), "nothing")
    cut = lh.chain_from_function(mlp, params, X)
    with pytest.raises(ValueError, match="the parameters of block `hidden0` must have the structure"):
        cut.chain.blocks[0]({"weight": X}, X, None)
    with pytest.raises(ValueError, match="`tied` must be 'owner' or 'sum'"):
        cut.chain.merge(cut.params, tied="mean")
    message = "`model_params` must be a pytree like that of the model: what was given lacks `layers.0.bias`, `"
    with pytest.raises(ValueError, match=message):
        cut.chain.split({"layers": []})
