"""Flax nnx, flax linen and equinox models as chains, unedited."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import localhessian as lh

pytestmark = pytest.mark.relaxed

IMAGES = jax.random.normal(jax.random.key(0), (4, 6, 6, 2))
ROWS = jax.random.normal(jax.random.key(1), (5, 3))
TOKENS = jax.random.randint(jax.random.key(2), (3, 5), 0, 7)


class Residual(nnx.Module):
    def __init__(self, width, rngs):
        self.conv = nnx.Conv(width, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(nnx.relu(self.norm(self.conv(x))))


class ResNet(nnx.Module):
    def __init__(self, rngs, width=4, blocks=2):
        self.stem = nnx.Conv(2, width, (3, 3), rngs=rngs)
        self.blocks = nnx.List([Residual(width, rngs) for _ in range(blocks)])
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def in_precision_of_run(tree):
    """Flax makes float32 even where the run is in float64."""
    precise = jnp.zeros(()).dtype
    return jax.tree.map(lambda a: a.astype(precise) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def made(cls):
    model = cls(nnx.Rngs(0))
    nnx.update(model, in_precision_of_run(nnx.state(model)))
    return model


def of_params(model):
    """The whole model as a function of its parameters, its other state as it is now."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    copies = jax.tree.map(jnp.asarray, rest)

    def run(params, x):
        return nnx.merge(graph, *jax.tree.map(lambda leaf: leaf, (params, copies)))(x)

    return run, jax.tree.map(jnp.asarray, params)


def assert_same_state(one, two):
    def numbers(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(numbers(a), numbers(b), rtol=1e-5)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_nnx_resnet(mode, check_cut):
    model = made(ResNet)
    getattr(model, mode)()
    run, params = of_params(model)
    cut = lh.chain_from_nnx(model, IMAGES)
    assert cut.chain.names == ("stem", "blocks.0", "blocks.1", "head")
    assert sorted(cut.params["blocks.1"]) == ["conv", "norm"]
    check_cut(cut, run, params, IMAGES, cut.context)
    context = cut.chain.next_context(cut.params, IMAGES, cut.context)
    model(IMAGES)
    assert_same_state(context, nnx.state(model, nnx.Not(nnx.Param)))
    matching = lh.back_match(
        cut.chain, cut.params, IMAGES, jnp.zeros(4, int), optax.softmax_cross_entropy_with_integer_labels, cut.context
    )
    assert {n: bool(c) for n, c in matching.coupled.items()}["blocks.0"] == (mode == "train")


def test_nnx_model_is_not_edited():
    model = made(ResNet)
    before = nnx.graphdef(model)
    lh.chain_from_nnx(model, IMAGES, at="blocks.*")
    assert nnx.graphdef(model) == before
    assert type(model.blocks[0]) is Residual


@pytest.mark.parametrize(
    ("at", "names"),
    [
        ("blocks.*", ("blocks.0", "blocks.1", "output")),
        (["stem", "blocks.1"], ("stem", "blocks.1", "output")),
        (lambda path, module: isinstance(module, nnx.Conv) and path == "stem", ("stem", "output")),
        ("blocks.?.dropout", None),
    ],
)
def test_nnx_at(at, names, check_cut):
    model = made(ResNet)
    model.eval()
    if names is None:
        with pytest.raises(lh.CutError, match="jumps over it"):
            lh.chain_from_nnx(model, IMAGES, at=at)
        names = ("blocks.0.dropout", "blocks.1.dropout", "output")
        cut = lh.chain_from_nnx(model, IMAGES, at=at, carry=True)
    else:
        cut = lh.chain_from_nnx(model, IMAGES, at=at)
    assert cut.chain.names == names
    run, params = of_params(model)
    check_cut(cut, run, params, IMAGES, cut.context)


def test_unknown_at_suggests_the_nearest():
    message = "`at`: no submodule matches `block.0`. Did you mean `blocks.0`? The model has `"
    with pytest.raises(ValueError, match=re.escape(message)):
        lh.chain_from_nnx(made(ResNet), IMAGES, at="block.0")
    with pytest.raises(ValueError, match="`at` chooses none of the submodules `"):
        lh.chain_from_nnx(made(ResNet), IMAGES, at=lambda path, module: False)


def test_a_submodule_that_is_never_called():
    model = made(ResNet)
    model.spare = nnx.Linear(2, 2, rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="the submodule `spare` was never called"):
        lh.chain_from_nnx(model, IMAGES, at=["stem", "spare"])


def test_nnx_sequential_keeps_activations_with_their_layer(check_cut):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=rngs), nnx.tanh, nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.relu),
        nnx.Linear(4, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs),
    )  # fmt: skip
    cut = lh.chain_from_nnx(model, ROWS)
    assert cut.chain.names == ("layers.0", "layers.2.layers.0", "layers.3", "layers.5")
    assert cut.chain.blocks[1].apply is cut.chain.blocks[2].apply
    assert cut.context is None
    run, params = of_params(model)
    check_cut(cut, run, params, ROWS)
    z = cut.chain.forward(cut.params, ROWS)
    np.testing.assert_allclose(z[1], jnp.tanh(model.layers[0](ROWS)), rtol=1e-5)


class Layer(nnx.Module):
    def __init__(self, rngs, width=8):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = nnx.Sequential(nnx.Linear(width, width, rngs=rngs), nnx.gelu, nnx.Linear(width, width, rngs=rngs))

    def __call__(self, h, mask):
        h = h + self.attention(self.norm1(h), mask=mask)
        return h + self.mlp(self.norm2(h))


class Transformer(nnx.Module):
    def __init__(self, rngs, width=8):
        self.embed = nnx.Embed(7, width, dtype=jnp.zeros(()).dtype, rngs=rngs)
        self.position = nnx.Embed(5, width, dtype=jnp.zeros(()).dtype, rngs=rngs)
        self.layers = nnx.List([Layer(rngs, width) for _ in range(3)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens):
        mask = nnx.combine_masks(nnx.make_causal_mask(tokens), nnx.make_attention_mask(tokens > 0, tokens > 0))
        h = self.embed(tokens) + self.position(jnp.arange(tokens.shape[1]))
        for layer in self.layers:
            h = layer(h, mask)
        return self.embed.attend(self.norm(h))


def test_nnx_transformer(check_cut):
    model = made(Transformer)
    run, params = of_params(model)
    cut = lh.chain_from_nnx(model, TOKENS)
    assert cut.chain.names == ("embed", "layers.0", "layers.1", "layers.2", "norm")
    check_cut(cut, run, params, TOKENS, cut.context)
    assert cut.chain.blocks[1].apply is cut.chain.blocks[3].apply
    assert sorted(cut.params["embed"]) == ["embed", "position"]
    assert sorted(cut.params["norm"]) == ["embed", "norm"]
    check_cut(cut, run, params, TOKENS[:1], cut.context)


def test_nnx_call_and_optax_on_either_layout():
    model = made(ResNet)
    cut = lh.chain_from_nnx(model, IMAGES, call=lambda model, x: nnx.log_softmax(nnx.jit(lambda m, x: m(x))(model, x)))
    out = cut.chain.forward(cut.params, IMAGES, cut.context)[-1]
    np.testing.assert_allclose(jnp.exp(out).sum(1), 1, rtol=1e-5)
    optimizer = optax.sgd(0.1)
    grads = jax.grad(lambda p: cut.chain.forward(p, IMAGES, cut.context)[-1].sum())(cut.params)
    updates, _ = optimizer.update(grads, optimizer.init(cut.params))
    stepped = cut.chain.merge(optax.apply_updates(cut.params, updates))
    nnx.update(model, stepped)
    np.testing.assert_array_equal(cut.chain.split(model)["stem"]["kernel"], model.stem.kernel[...])
    np.testing.assert_array_equal(stepped["stem"]["kernel"][...], model.stem.kernel[...])


def test_nnx_scanned_layers(check_cut):
    class Dense(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, h):
            return h + nnx.tanh(self.linear(h))

    class Scanned(nnx.Module):
        def __init__(self, rngs):
            make = nnx.split_rngs(splits=4)(nnx.vmap(Dense, in_axes=0, out_axes=0))
            self.layers = make(rngs)
            self.head = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            forward = nnx.scan(lambda h, layer: layer(h), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return self.head(forward(x, self.layers))

    model = made(Scanned)
    run, params = of_params(model)
    cut = lh.chain_from_nnx(model, ROWS)
    assert cut.chain.names == ("layers[0]", "layers[1]", "layers[2]", "layers[3]", "head")
    assert cut.params["layers[2]"]["kernel"].shape == (3, 3)
    check_cut(cut, run, params, ROWS, cut.context)


def dense_net(rngs):
    class DenseNet(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(3 + 4 * i, 4, rngs=rngs) for i in range(3)])
            self.out = nnx.Linear(15, 2, rngs=rngs)

        def __call__(self, x):
            for layer in self.layers:
                x = jnp.concatenate([x, nnx.relu(layer(x))], axis=-1)
            return self.out(x)

    return DenseNet()


def recurrent(rngs):
    class Recurrent(nnx.Module):
        def __init__(self):
            self.rnn, self.head = (
                nnx.RNN(nnx.LSTMCell(1, 4, param_dtype=jnp.zeros(()).dtype, rngs=rngs)),
                nnx.Linear(4, 2, rngs=rngs),
            )

        def __call__(self, x):
            return self.head(self.rnn(x[:, :, None])[:, -1])

    return Recurrent()


def branching(rngs):
    """`side` runs beside `main` and is joined after it: no boundary may fall between them."""

    class Branching(nnx.Module):
        def __init__(self):
            self.stem, self.main = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
            self.side, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.main(nnx.relu(self.stem(x)))) + self.side(x))

    return Branching()


def rematerialized(rngs):
    class Remat(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(3)])

        def __call__(self, x):
            for layer in self.layers:
                x = nnx.relu(nnx.remat(lambda layer, x: layer(x))(layer, x))
            return x

    return Remat()


def own_marks(rngs):
    class Own(nnx.Module):
        def __init__(self):
            self.a, self.b = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.b(lh.mark(nnx.relu(self.a(x)), "mine"))

    return Own()


def parameter_after_blocks(rngs):
    class Tail(nnx.Module):
        def __init__(self):
            self.blocks = nnx.List([nnx.Sequential(nnx.Linear(3, 3, rngs=rngs)) for _ in range(2)])
            self.wrapped = nnx.List([own_marks_free(rngs) for _ in range(2)])
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            for block in (*self.blocks, *self.wrapped):
                x = block(x)
            return x * self.scale

    return Tail()


def own_marks_free(rngs):
    class Inner(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return x + self.linear(x)

    return Inner()


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (dense_net, ("layers.0", "layers.1", "layers.2", "out")),
        (recurrent, ("rnn", "head")),
        (branching, ("stem", "main", "head")),
        (rematerialized, ("layers.0", "layers.1", "layers.2")),
        (own_marks, ("mine", "output")),
        (parameter_after_blocks, ("blocks.0.layers.0", "blocks.1.layers.0", "wrapped.0", "wrapped.1", "output")),
    ],
)
def test_default_boundaries(build, names, check_cut):
    model = made(build)
    run, params = of_params(model)
    cut = lh.chain_from_nnx(model, ROWS)
    assert cut.chain.names == names
    check_cut(cut, run, params, ROWS, cut.context)


def test_bfloat16_model():
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(3, 4, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=rngs), nnx.relu]
    model = nnx.Sequential(*layers, nnx.Linear(4, 2, dtype=jnp.bfloat16, rngs=rngs))
    cut = lh.chain_from_nnx(model, ROWS)
    z = cut.chain.forward(cut.params, ROWS)
    assert [leaf.dtype for leaf in z] == [ROWS.dtype, jnp.bfloat16, jnp.bfloat16]
    np.testing.assert_array_equal(z[-1], model(ROWS))


class LinenNet(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=not self.train)(nn.Conv(4, (3, 3))(x)))
        x = x + nn.Conv(4, (3, 3))(x)
        x = nn.Dropout(0.5, deterministic=not self.train)(x.mean((1, 2)))
        return nn.Dense(3)(x)


@pytest.mark.parametrize("train", [True, False])
def test_linen(train, check_cut):
    model, rngs = LinenNet(train), {"dropout": jax.random.key(5)}
    variables = in_precision_of_run(model.init({"params": jax.random.key(0), **rngs}, IMAGES))
    cut = lh.chain_from_linen(model, variables, IMAGES, rngs=rngs)
    assert cut.chain.names == ("Conv_0", "BatchNorm_0", "Conv_1", "Dense_0")

    def run(params, x):
        return model.apply({**variables, "params": params}, x, rngs=rngs, mutable=["batch_stats"])[0]

    check_cut(cut, run, variables["params"], IMAGES, cut.context)
    _, after = model.apply(variables, IMAGES, rngs=rngs, mutable=["batch_stats"])
    context = cut.chain.next_context(cut.params, IMAGES, cut.context)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), context["variables"], dict(after))
    by_name = lh.chain_from_linen(model, variables, IMAGES, at="Conv_0", rngs=rngs)
    assert by_name.chain.names == ("Conv_0", "output")
    with pytest.raises(ValueError, match="Did you mean `Conv_"):
        lh.chain_from_linen(model, variables, IMAGES, at="conv_9", rngs=rngs)


def test_linen_scanned_layers(check_cut):
    class Body(nn.Module):
        @nn.compact
        def __call__(self, h, _):
            return h + nn.tanh(nn.Dense(3)(h)), None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = nn.scan(Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return nn.Dense(2)(layers(name="layers")(x, None)[0])

    model = Scanned()
    variables = model.init(jax.random.key(0), ROWS)
    cut = lh.chain_from_linen(model, variables, ROWS)
    assert cut.chain.names == ("layers[0]", "layers[1]", "layers[2]", "Dense_0")
    check_cut(cut, lambda p, x: model.apply({"params": p}, x), variables["params"], ROWS)


class Block(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.linear, self.norm = eqx.nn.Linear(6, 6, key=key), eqx.nn.LayerNorm(6)
        self.dropout = eqx.nn.Dropout(0.4)

    def __call__(self, x, *, key):
        return x + self.dropout(jax.nn.gelu(self.linear(self.norm(x))), key=key)


class EquinoxNet(eqx.Module):
    stem: eqx.nn.Linear
    blocks: list
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.stem, self.head = eqx.nn.Linear(3, 6, key=keys[0]), eqx.nn.Linear(6, 2, key=keys[1])
        self.blocks = [Block(k) for k in keys[2:]]

    def __call__(self, x, key=None):
        x = jnp.tanh(self.stem(x))
        for i, block in enumerate(self.blocks):
            x = block(x, key=None if key is None else jax.random.fold_in(key, i))
        return self.head(x)


def test_equinox_per_sample(check_cut):
    model = eqx.nn.inference_mode(EquinoxNet(jax.random.key(0)))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    for at, names in [(None, ("stem", "blocks.0", "blocks.1", "blocks.2", "head")), ("blocks.*", None)]:
        cut = lh.chain_from_equinox(model, ROWS, at=at)
        assert cut.chain.names == (names or ("blocks.0", "blocks.1", "blocks.2", "output"))
        check_cut(cut, lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, ROWS)
        assert all(z.shape[0] == 5 for z in cut.chain.forward(cut.params, ROWS))
    assert type(model.blocks[0]) is Block
    np.testing.assert_array_equal(cut.chain.split(model)["output"]["weight"], model.head.weight)
    combined = eqx.combine(cut.chain.merge(cut.params), model)
    np.testing.assert_array_equal(jax.vmap(combined)(ROWS), jax.vmap(model)(ROWS))


def test_equinox_dropout_keys_and_state(check_cut):
    model = EquinoxNet(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def call(model, x, context):
        keys = jax.random.split(context["key"], x.shape[0])
        return jax.vmap(model)(x, keys), {"key": jax.random.fold_in(context["key"], 1)}

    context = {"key": jax.random.key(7)}
    cut = lh.chain_from_equinox(model, ROWS, call=call, context=context, has_aux=True)
    check_cut(cut, lambda p, x: call(eqx.combine(p, static), x, context)[0], params, ROWS, cut.context)
    after = cut.chain.next_context(cut.params, ROWS, cut.context)
    assert after["key"] == jax.random.fold_in(context["key"], 1)
    with pytest.raises(ValueError, match=re.escape("say by `call(model, x, context)`")):
        lh.chain_from_equinox(model, ROWS, context=context)


def test_equinox_batch_norm_state(check_cut):
    class Net(eqx.Module):
        layers: list
        norm: eqx.nn.BatchNorm

        def __init__(self, key):
            a, b = jax.random.split(key)
            self.layers = [eqx.nn.Linear(3, 4, key=a), eqx.nn.Linear(4, 2, key=b)]
            self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch")

        def __call__(self, x, state):
            x, state = self.norm(self.layers[0](x), state)
            return self.layers[1](jnp.tanh(x)), state

    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def call(model, x, state):
        return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    cut = lh.chain_from_equinox(model, ROWS, call=call, context=state, has_aux=True)
    assert cut.chain.names == ("layers.0", "norm", "layers.1")
    check_cut(cut, lambda p, x: call(eqx.combine(p, static), x, state)[0], params, ROWS, cut.context)
    _, after = call(model, ROWS, state)
    context = cut.chain.next_context(cut.params, ROWS, cut.context)
    for one, two in zip(jax.tree.leaves(context), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)
