"""Flax nnx models as chains, unedited."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from nnx_models import IMAGES, ROWS, Residual, made, of_params

import localhessian as lh

pytestmark = [pytest.mark.relaxed, pytest.mark.once]

TOKENS = jax.random.randint(jax.random.key(2), (3, 5), 0, 7)


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
    assert cut.context.given is None
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
        self.embed = nnx.Embed(7, width, dtype=jnp.result_type(float), rngs=rngs)
        self.position = nnx.Embed(5, width, dtype=jnp.result_type(float), rngs=rngs)
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
    grads = jax.jit(jax.grad(lambda p: cut.chain.forward(p, IMAGES, cut.context)[-1].sum()))(cut.params)
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
                nnx.RNN(nnx.LSTMCell(1, 4, param_dtype=jnp.result_type(float), rngs=rngs)),
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


@pytest.mark.parametrize(
    ("beside", "carry", "names"),
    [
        (False, False, ("stem", "both", "head")),
        (False, True, ("stem", "both.forward_rnn", "both.backward_rnn", "head")),
        (True, True, ("stem", "both.forward_rnn", "both.backward_rnn", "head")),  # with a layer beside it
    ],
)
def test_directions_of_a_recurrent_layer(beside, carry, names, check_cut):
    dtype, rngs = jnp.result_type(float), nnx.Rngs(0)

    class Tagger(nnx.Module):
        def __init__(self):
            cells = (nnx.SimpleCell(2, 2, dtype=dtype, param_dtype=dtype, rngs=rngs) for _ in range(2))
            self.stem, self.main = (nnx.Linear(i, o, param_dtype=dtype, rngs=rngs) for i, o in ((1, 2), (2, 4)))
            self.both = nnx.Bidirectional(*(nnx.RNN(cell) for cell in cells))
            self.head = nnx.Linear(4, 2, param_dtype=dtype, rngs=rngs)

        def __call__(self, x):
            h = nnx.tanh(self.stem(x[:, :, None]))
            return self.head(self.main(h) + self.both(h) if beside else self.both(h))

    model = made(lambda _: Tagger())
    run, params = of_params(model)
    cut = lh.chain_from_nnx(model, ROWS, carry=carry)
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
