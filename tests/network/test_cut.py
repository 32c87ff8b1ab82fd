"""Functions cut at their marks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marked import TOKENS, X, affine, dense, mlp, mlp_params, transformer, transformer_params
from networks import drawn

import localhessian as lh

pytestmark = pytest.mark.once


def test_mlp(check_cut):
    params = mlp_params()
    cut = lh.chain_from_function(mlp, params, X)
    check_cut(cut, mlp, params, X)
    assert cut.chain.names == ("hidden0", "hidden1", "hidden2", "output")
    assert cut.context.given is None
    assert cut.context.derived == ()
    assert sorted(cut.params["hidden1"]) == ["bias", "kernel"]
    np.testing.assert_array_equal(cut.params["hidden1"]["kernel"], params["layers"][1]["kernel"])
    z = cut.chain.forward(cut.params, X)
    np.testing.assert_allclose(z[1], jnp.tanh(affine(params["layers"][0], X)), rtol=1e-5)


def test_mark_changes_nothing():
    def plain(x):
        return jnp.sum(jnp.sin(x) ** 2)

    def marked(x):
        return jnp.sum(lh.mark(jnp.sin(x), "sin") ** 2)

    for transform in (lambda f: f, jax.jit, jax.grad, jax.checkpoint, jax.hessian, jax.vmap):
        np.testing.assert_allclose(transform(marked)(X[0]), transform(plain)(X[0]), rtol=1e-5)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f))])
def test_marks_inside_calls(wrap, check_cut):
    params = mlp_params()
    cut = lh.chain_from_function(wrap(mlp), params, X)
    assert len(cut.chain) == 4
    check_cut(cut, mlp, params, X)


def test_checkpoint_around_a_block(check_cut):
    def model(params, x):
        block = jax.checkpoint(lambda p, h: jnp.tanh(affine(p, h)))
        for i, layer in enumerate(params["layers"]):
            x = lh.mark(block(layer, x), f"l{i}")
        return x

    params = mlp_params((3, 3, 3))
    cut = lh.chain_from_function(model, params, X)
    assert cut.chain.names == ("l0", "l1")
    check_cut(cut, model, params, X)


def test_users_own_checkpoint_names_are_left_alone():
    def model(params, x):
        h = jax.ad_checkpoint.checkpoint_name(x * params["a"], "mine")
        return lh.mark(h, "ours") * params["b"]

    cut = lh.chain_from_function(model, {"a": jnp.array(2.0), "b": jnp.array(3.0)}, X)
    assert cut.chain.names == ("ours", "output")


def test_vmap_inside_keeps_samples_leading(check_cut):
    """`W @ x` under vmap puts the samples last; a skip around the mark must not count as a jump."""

    def single(params, x):
        h = params["a"] @ x
        h = h + jnp.tanh(params["b"] @ lh.mark(h, "a"))
        return params["c"] @ lh.mark(h, "b")

    def model(params, x):
        return jax.vmap(single, (None, 0))(params, x)

    params = {"a": drawn(0, 5, 3), "b": drawn(1, 5, 5), "c": drawn(2, 2, 5)}
    cut = lh.chain_from_function(model, params, X)
    check_cut(cut, model, params, X)
    assert [z.shape for z in cut.chain.forward(cut.params, X)] == [(6, 3), (6, 5), (6, 5), (6, 2)]


def conv(params, x):
    return jax.lax.conv_general_dilated(x, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv_bn(params, x, context):
    h = conv(params["conv1"], x)
    mean, var = h.mean((0, 1, 2), keepdims=True), h.var((0, 1, 2), keepdims=True)
    scale = params["scale"].reshape(1, 1, 1, -1)
    h = lh.mark(jax.nn.relu((h - mean) * jax.lax.rsqrt(var + 1e-5) * scale), "stage1")
    h = lh.mark(h + conv(params["conv2"], h), "stage2")
    decay = jnp.asarray(0.9, x.dtype)
    return h.mean((1, 2)) @ params["head"], {"mean": decay * context["mean"] + (1 - decay) * mean.ravel()}


def test_conv_batch_norm_and_residual(check_cut, tol):
    x = drawn(9, 4, 6, 6, 2)
    params = {"conv1": drawn(0, 3, 3, 2, 4), "scale": 1 + drawn(1, 4), "conv2": drawn(2, 3, 3, 4, 4)}
    params["head"] = drawn(3, 4, 3)
    statistics = {"mean": jnp.ones(4)}
    cut = lh.chain_from_function(conv_bn, params, x, statistics, has_aux=True)
    check_cut(cut, lambda p, x: conv_bn(p, x, statistics)[0], params, x, cut.context)
    after = cut.chain.next_context(cut.params, x, cut.context)
    np.testing.assert_allclose(after["mean"], conv_bn(params, x, statistics)[1]["mean"], rtol=100 * tol.identity)
    matching = lh.back_match(
        cut.chain, cut.params, x, jnp.zeros((4, 3)), lambda z, y: ((z - y) ** 2).sum(1), statistics
    )
    assert {name: bool(c) for name, c in matching.coupled.items()} == {"stage1": True, "stage2": False, "output": False}


def test_transformer_with_mask_and_tied_embeddings(check_cut):
    params = transformer_params()
    cut = lh.chain_from_function(transformer, params, TOKENS)
    check_cut(cut, transformer, params, TOKENS, cut.context)
    np.testing.assert_array_equal(cut.params["embed"]["embed"], cut.params["output"]["embed"])
    assert sorted(cut.params["layer1"]) == ["key", "mlp", "out", "query", "value"]
    assert [z.dtype.kind for z in jax.jit(cut.chain.forward)(cut.params, TOKENS)] == ["i", "f", "f", "f", "f", "f"]


def test_equal_blocks_share_their_apply():
    chain = lh.chain_from_function(transformer, transformer_params(), TOKENS).chain
    layers = [block.apply for block in chain.blocks[1:-1]]
    assert layers[0] is layers[1] is layers[2]
    assert len({chain.blocks[0].apply, layers[0], chain.blocks[-1].apply}) == 3


def test_blocks_with_other_constants_or_rules_do_not_share():
    def scaled(scale):
        @jax.custom_jvp
        def identity(z):
            return z * 1.0

        @identity.defjvp
        def _(primals, tangents):
            return identity(*primals), scale * tangents[0]

        return identity

    def model(params, x):
        for i, (table, rule) in enumerate([(1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, 3.0)]):
            shift = jnp.broadcast_to(jnp.full(3, table, x.dtype), x.shape)
            x = lh.mark(scaled(rule)(x @ params[i]) + shift, f"l{i}")
        return x

    chain = lh.chain_from_function(model, [drawn(i, 3, 3) for i in range(4)], X).chain
    a, b, c, d = [block.apply for block in chain.blocks]
    assert a is c
    assert len({a, b, d}) == 3


def test_rules_are_followed_only_where_programs_are_equal():
    followed = []

    @jax.custom_jvp
    def identity(z):
        return z * 1.0

    @identity.defjvp
    def _(primals, tangents):
        followed.append(primals[0].shape[1])
        return identity(*primals), tangents[0] * 1.0

    def model(params, x):
        for i, weights in enumerate(params):
            x = lh.mark(identity(x @ weights), f"l{i}")
        return x

    lh.chain_from_function(model, [drawn(0, 3, 5), drawn(1, 5, 3), drawn(2, 3, 4), drawn(3, 4, 4), drawn(4, 4, 4)], X)
    assert set(followed) == {4}


def test_a_rule_of_its_own_beside_a_plain_number():
    """A program may return a literal, which has no dtype, and still share what it is with equal blocks."""

    def network(params, x):
        h = lh.mark(x @ params["a"], "a")
        return jax.nn.relu(h @ params["b"]), True

    params = {"a": jnp.ones((3, 4)) / 3, "b": jnp.ones((4, 2)) / 2}
    cut = lh.chain_from_function(network, params, jnp.ones((5, 3)))
    output, flag = cut.chain.forward(cut.params, jnp.ones((5, 3)))[-1]
    np.testing.assert_allclose(output, 2 * jnp.ones((5, 2)), rtol=1e-6)
    assert bool(flag)


def test_context_is_never_stale():
    """What blocks take of x is computed from the x at hand, whatever context comes with it."""
    params = transformer_params()
    cut = lh.chain_from_function(transformer, params, TOKENS)
    other = (TOKENS + 1) % 7
    expected = transformer(params, other)
    for context in (None, cut.context, cut.chain.context_for(other)):
        np.testing.assert_allclose(cut.chain.forward(cut.params, other, context)[-1], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=re.escape("pass `chain.context_for(x, context)`")):
        cut.chain.blocks[1](cut.params["layer0"], jnp.ones((5, 6, 4)), None)


def test_dropout_key_in_context(check_cut):
    def model(params, x, key):
        keys = jax.random.split(key, 2)
        h = lh.mark(jnp.tanh(affine(params[0], x)), "first")
        h = jnp.where(jax.random.bernoulli(keys[0], 0.5, h.shape), h, 0)
        h = lh.mark(jnp.tanh(affine(params[1], h)), "second")
        return affine(params[2], jnp.where(jax.random.bernoulli(keys[1], 0.5, h.shape), h, 0))

    params = [dense(0, 3, 5), dense(1, 5, 5), dense(2, 5, 2)]
    key = jax.random.key(4)
    cut = lh.chain_from_function(model, params, X, key)
    check_cut(cut, lambda p, x: model(p, x, key), params, X, cut.context)
    other = cut.chain.forward(cut.params, X, jax.random.key(5))[-1]
    np.testing.assert_allclose(other, model(params, X, jax.random.key(5)), rtol=1e-4, atol=1e-5)


def test_bfloat16():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mlp_params())
    x = X.astype(jnp.bfloat16)
    cut = lh.chain_from_function(mlp, params, x)
    z = cut.chain.forward(cut.params, x)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in z)
    np.testing.assert_array_equal(z[-1], mlp(params, x))


def test_new_batch_size_is_cut_again(check_cut):
    """The number of samples stands in reshapes and in the mean of this model: a stale program would be wrong."""

    def model(params, x):
        h = lh.mark(x.reshape(x.shape[0], -1) @ params["a"], "a")
        h = 2 * h - jnp.broadcast_to(h.sum(0, keepdims=True) / x.shape[0], h.shape)
        return h @ params["b"]

    params = {"a": drawn(0, 6, 4), "b": drawn(1, 4, 2)}
    x = drawn(2, 7, 2, 3)
    cut = lh.chain_from_function(model, params, x)
    for n in (7, 3, 1):
        check_cut(cut, model, params, x[:n])
    block, z = cut.chain.blocks[1], x[:2].reshape(2, 6) @ params["a"]
    context = cut.chain.context_for(x[:2], cut.context)
    np.testing.assert_allclose(block(cut.params["output"], z, context), model(params, x[:2]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"its `context` was derived for x \(float\d+\[7, 2, 3\]\)"):
        block(cut.params["output"], z, cut.context)


def test_new_shape_of_the_sample(check_cut):
    params = transformer_params()
    cut = lh.chain_from_function(transformer, params, TOKENS)
    check_cut(cut, transformer, params, TOKENS[:2, :4])
    with pytest.raises(
        ValueError, match=re.escape("derive it for the new `x` by `chain.context_for(x, context, params)`")
    ):
        cut.chain.blocks[1](cut.params["layer0"], jnp.ones((5, 4, 4)), cut.context)


def test_no_recompilation_for_new_values(count_compilations):
    params = transformer_params()
    cut = lh.chain_from_function(transformer, params, TOKENS)

    @jax.jit
    def step(block_params, x, context):
        return cut.chain.forward(block_params, x, context)[-1]

    batches = [(TOKENS + i) % 7 for i in range(3)]
    context = [cut.chain.context_for(x, cut.context) for x in batches]
    scaled = [jax.tree.map(lambda leaf, i=i: leaf * (1 + i), cut.params) for i in range(3)]
    step(scaled[0], batches[0], context[0])
    with count_compilations() as seen:
        for arguments in zip(scaled[1:], batches[1:], context[1:], strict=True):
            step(*arguments)
    assert seen.names == []


def test_works_under_vmap_over_parameters():
    params = mlp_params()
    cut = lh.chain_from_function(mlp, params, X)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), cut.params)
    out = jax.vmap(lambda p: cut.chain.forward(p, X)[-1])(two)
    np.testing.assert_allclose(out[0], mlp(params, X), rtol=1e-5, atol=1e-6)


def test_pytree_activations_and_output(check_cut):
    def model(params, x):
        h = jnp.tanh(x["a"] @ params["w"])
        h, skip = lh.mark((h, x["b"]), "join")
        return {"out": h @ params["v"] + skip, "h": h}

    params = {"w": drawn(0, 3, 4), "v": drawn(1, 4, 2)}
    x = {"a": X, "b": drawn(2, 6, 2)}
    cut = lh.chain_from_function(model, params, x)
    check_cut(cut, model, params, x)
    assert [leaf.shape for leaf in cut.chain.forward(cut.params, x)[1]] == [(6, 4), (6, 2)]


def test_derived_parameters_and_dense_connections(check_cut):
    """A normalized weight used by two blocks is computed in both; x joins later blocks as context."""

    def model(params, x):
        w = params["w"] / jnp.linalg.norm(params["w"])
        h = lh.mark(jnp.tanh(x @ w), "one")
        h = lh.mark(jnp.tanh(h @ w), "two")
        return jnp.concatenate([h, x], axis=1) @ params["v"]

    params = {"w": drawn(0, 3, 3), "v": drawn(1, 6, 2)}
    cut = lh.chain_from_function(model, params, X)
    check_cut(cut, model, params, X, cut.context)
    assert [sorted(cut.params[name]) for name in cut.chain.names] == [["w"], ["w"], ["v"]]


def test_layers_in_a_scan_are_cut_apart(check_cut):
    def model(params, x):
        def layer(h, p):
            return lh.mark(h + jnp.tanh(affine(p, h)), "layer"), None

        h, _ = jax.lax.scan(layer, lh.mark(x @ params["in"], "in"), params["layers"])
        return h @ params["out"]

    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[dense(i, 4, 4) for i in range(3)])
    params = {"in": drawn(7, 3, 4), "layers": layers, "out": drawn(8, 4, 2)}
    cut = lh.chain_from_function(model, params, X)
    check_cut(cut, model, params, X)
    assert cut.chain.names == ("in", "layer[0]", "layer[1]", "layer[2]", "output")
    assert cut.params["layer[1]"]["kernel"].shape == (4, 4)
    assert cut.chain.blocks[1].apply is cut.chain.blocks[3].apply


def test_scan_over_time_stays_whole(check_cut):
    def model(params, x):
        def cell(h, token):
            h = jnp.tanh(token @ params["in"] + h @ params["rec"])
            return h, h

        _, states = jax.lax.scan(cell, jnp.zeros((x.shape[0], 4), x.dtype), jnp.swapaxes(x, 0, 1))
        h = lh.mark(jnp.swapaxes(states, 0, 1), "recurrent")
        return h[:, -1] @ params["head"]

    params = {"in": drawn(0, 3, 4), "rec": drawn(1, 4, 4), "head": drawn(2, 4, 2)}
    x = drawn(3, 6, 5, 3)
    cut = lh.chain_from_function(model, params, x)
    check_cut(cut, model, params, x)
    assert sorted(cut.params["recurrent"]) == ["in", "rec"]


def test_a_parameter_that_no_block_uses():
    params = {**mlp_params(), "unused": jnp.ones(3)}
    cut = lh.chain_from_function(mlp, params, X)
    with pytest.raises(ValueError, match="pass `like=model_params`"):
        cut.chain.merge(cut.params)
    np.testing.assert_array_equal(cut.chain.merge(cut.params, like=params)["unused"], jnp.ones(3))
    np.testing.assert_array_equal(cut.chain.merge(cut.params, tied="sum")["unused"], jnp.zeros(3))


def test_describe():
    cut = lh.chain_from_function(transformer, transformer_params(), TOKENS)
    text = cut.chain.describe()
    assert re.search(r"layer0 +float\d\d\[5,6,4\] +float\d\d\[5,6,4\] +80 +27\.0% +1 of x", text)
    assert re.search(r"total +296$", text, re.MULTILINE)
    assert "[2,6,4]" in cut.chain.describe(cut.params, TOKENS[:2], cut.context)
    by_hand = lh.Chain([lh.Block("a", lambda w, z: z @ w), lh.Block("b", lambda w, z, context: z + context)])
    lines = by_hand.describe({"a": jnp.ones((3, 2))}, X, jnp.ones((6, 2))).splitlines()
    assert lines[2].split() == ["a", f"{X.dtype}[6,3]", f"{X.dtype}[6,2]", "6", "100.0%"]
    assert lines[3].split()[-1] == "yes"
