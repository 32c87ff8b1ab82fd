"""Functions without marks, cut where they leave their `jax.named_scope`s."""

import re

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import localhessian as lh

pytestmark = pytest.mark.once
X = networks.drawn(0, 4, 3)


def weights():
    rng = np.random.default_rng(1)
    return {name: networks.normal(rng, 3, 3) for name in ("w0", "w1", "middle", "head")}


def network(params, x):
    with jax.named_scope("encoder"):
        mask, h = (x > 0).astype(x.dtype), x
        for i in range(2):
            with jax.named_scope(f"layer_{i}"):
                h = jnp.tanh(h @ params[f"w{i}"] * mask)

    @jax.jit
    def middle(h):
        with jax.named_scope("middle"):
            h = jnp.sin(h @ params["middle"])
        return h + 1

    with jax.named_scope("top"):
        return jax.vmap(jax.named_scope("head")(lambda row: jnp.cos(row @ params["head"])))(middle(h))


@pytest.mark.parametrize(
    ("at", "names"),
    [
        ("encoder.layer_*", ("encoder.layer_0", "encoder.layer_1", "output")),
        (["encoder", "**.middle"], ("encoder", "top.middle", "output")),
        (["encoder.layer_0", "encoder", "top"], ("encoder.layer_0", "encoder", "top")),
        (lambda path, words: words[-1] in ("layer_1", "head"), ("encoder.layer_1", "top.head")),
    ],
)
def test_blocks_end_where_scopes_do(at, names, check_cut):
    cut = lh.chain_from_function(network, weights(), X, at=at)
    assert cut.chain.names == names
    check_cut(cut, network, weights(), X, cut.context)


def test_a_scope_entered_again_is_numbered_and_marks_stay(check_cut):
    def repeated(params, x):
        for _ in range(2):
            with jax.named_scope("layer"):
                x = jnp.tanh(x @ params["w0"])
            x = x + 1
        return lh.mark(x @ params["w1"], "marked") @ params["head"]

    params = {name: weights()[name] for name in ("w0", "w1", "head")}
    cut = lh.chain_from_function(repeated, params, X, at="layer")
    assert cut.chain.names == ("layer[0]", "layer[1]", "marked", "output")
    check_cut(cut, repeated, params, X)
    assert "`w0` is one array that `layer[0]`, `layer[1]` use; the first of them owns it" in cut.chain.describe()
    assert cut.chain.forward(cut.params, X[:2])[-1].shape == (2, 3)


def test_the_next_state_that_leaves_a_scope_is_no_part_of_z(check_cut):
    def normalized(params, x, mean):
        with jax.named_scope("norm"):
            h = x @ params["w0"]
            after = 0.9 * mean + 0.1 * h.mean(0, keepdims=True)
            h = jnp.tanh(h - mean)
        return h @ params["head"], after

    params, mean = {name: weights()[name] for name in ("w0", "head")}, jnp.zeros((1, 3))
    cut = lh.chain_from_function(normalized, params, X, mean, at="norm", has_aux=True)
    assert cut.chain.names == ("norm", "output")
    check_cut(cut, lambda params, x: normalized(params, x, mean)[0], params, X, cut.context)
    after = cut.chain.next_context(cut.params, X, cut.context).given
    assert jnp.allclose(after, 0.1 * (X @ params["w0"]).mean(0, keepdims=True), rtol=1e-5)


def test_what_cannot_be_cut_at_scopes_is_told():
    message = "`at`: no scope matches `encodr`. Did you mean `encoder`? The model has `encoder`, `encoder.layer_0`"
    with pytest.raises(ValueError, match=re.escape(message)):
        lh.chain_from_function(network, weights(), X, at="encodr")
    with pytest.raises(ValueError, match="or `at=` one or more of its scopes 'encoder', 'top'"):
        lh.chain_from_function(network, weights(), X)
    with pytest.raises(ValueError, match=r"the function holds no `jax\.named_scope`, so write"):
        lh.chain_from_function(lambda params, x: x @ params, jnp.ones((3, 2)), X, at="encoder")
