"""Flax linen models as chains, unedited."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import linen as nn
from flax.core import freeze

import localhessian as lh

pytestmark = [pytest.mark.relaxed, pytest.mark.once]

IMAGES = networks.drawn(0, 4, 6, 6, 2)
ROWS = networks.drawn(1, 5, 3)


def in_precision_of_run(tree):
    """Flax makes float32 even where the run is in float64."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), tree)


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


class EncoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=1)(nn.LayerNorm()(x))
        return x + nn.Dense(4)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x))))


class Positions(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("pos_embedding", nn.initializers.normal(), (1, 9, 4))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Positions(name="posembed_input")(x)
        for i in range(3):
            x = EncoderBlock(name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class VisionTransformer(nn.Module):
    """With the names and the nesting of google-research/vision_transformer."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (2, 2), (2, 2), "VALID", name="embedding")(x).reshape(len(x), 9, 4)
        return nn.Dense(3, name="head")(Encoder(name="Transformer")(x).mean(1))


class Stage(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = Bottleneck(self.features, name=f"unit{i + 1}")(x)
        return x


class Bottleneck(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        skip = x if x.shape[-1] == self.features else nn.Conv(self.features, (1, 1), name="conv_proj")(x)
        return nn.relu(nn.Conv(self.features, (3, 3), name="conv")(nn.relu(nn.GroupNorm(1)(x))) + skip)


class ResNet(nn.Module):
    """Of groups of bottlenecks."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 3), name="conv_root")(x)
        for i in range(2):
            x = Stage(2 * 2**i, name=f"block{i + 1}")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


LAYERS = ("posembed_input", *(f"encoderblock_{i}" for i in range(3)), "encoder_norm")


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (VisionTransformer(), ("embedding", *(f"Transformer.{layer}" for layer in LAYERS), "head")),
        (ResNet(), ("conv_root", *(f"block{i}.unit{j}" for i in (1, 2) for j in (1, 2)), "head")),
    ],
    ids=["vision transformer", "resnet"],
)
def test_models_are_cut_where_their_authors_would(model, names):
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), variables)
    cut = lh.chain_from_linen(model, variables, IMAGES)
    assert cut.chain.names == names
    out = jax.jit(lambda params: cut.chain.forward(params, IMAGES, cut.context)[-1])(cut.params)
    np.testing.assert_allclose(out, jax.jit(model.apply)(variables, IMAGES), rtol=1e-5)


def test_recurrent_layers_are_blocks_by_their_own_names(check_cut):
    """Their cells' parameters lie beside them in the model, not inside."""

    class Tagger(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.RNN(nn.SimpleCell(4), name="encoder")(nn.Dense(3)(x))
            return nn.Dense(2)(nn.Bidirectional(nn.RNN(nn.SimpleCell(2)), nn.RNN(nn.SimpleCell(2)))(x))

    model, x = Tagger(), jnp.stack([ROWS, ROWS + 1]).astype(jnp.float32)  # of another type flax's cells lose their own
    variables = model.init(jax.random.key(0), x)
    cut = lh.chain_from_linen(model, variables, x)
    assert cut.chain.names == ("Dense_0", "encoder", "Bidirectional_0", "Dense_1")
    assert set(cut.params["encoder"]) == {"h", "i"}
    assert set(cut.params["Bidirectional_0"]) == {"SimpleCell_1", "SimpleCell_2"}
    check_cut(cut, lambda p, x: model.apply({"params": p}, x), variables["params"], x)
    assert "`Bidirectional_0` reads its input in two directions: `carry=True` makes a block of each." in (
        cut.chain.describe()
    )
    for form in (freeze(variables), freeze(variables["params"]), variables["params"]):
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), cut.chain.split(form), cut.params))


def test_directions_are_blocks_where_z_may_carry(check_cut):
    """The first layer reads `x`, which its other direction has as context; the second is handed its input in z."""

    class Tagger(nn.Module):
        @nn.compact
        def __call__(self, x):
            for name in ("low", "high"):
                x = nn.Bidirectional(nn.RNN(nn.SimpleCell(2)), nn.RNN(nn.SimpleCell(2)), name=name)(x)
            return nn.Dense(2)(x)

    model, x = Tagger(), jnp.stack([ROWS, ROWS + 1]).astype(jnp.float32)
    variables = model.init(jax.random.key(0), x)
    cut = lh.chain_from_linen(model, variables, x, carry=True)
    low, high = (tuple(f"{name}.{way}_rnn" for way in ("forward", "backward")) for name in ("low", "high"))
    assert cut.chain.names == (*low, *high, "Dense_0")
    counts = [len(jax.tree.leaves(z)) for z in jax.eval_shape(cut.chain.forward, cut.params, x, cut.context)]
    assert counts == [1, 1, 1, 2, 1, 1]
    assert "directions" not in cut.chain.describe()
    check_cut(cut, lambda p, x: model.apply({"params": p}, x), variables["params"], x, cut.context)
