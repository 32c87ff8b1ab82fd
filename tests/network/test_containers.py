"""Where models are cut by default that hold containers of blocks, and what is told of blocks that hold most."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from nnx_models import IMAGES, ROWS, Residual, made, of_params

import localhessian as lh

pytestmark = [pytest.mark.relaxed, pytest.mark.once]


class Encoder(nnx.Module):
    """A container of repeated blocks, with parameters of its own before and a layer after them."""

    def __init__(self, rngs):
        self.position = nnx.Param(jnp.ones((6, 4)))
        self.layers = nnx.List([Residual(4, rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, x):
        x = x + self.position
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Encoded(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.encoder = Encoder(rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.encoder(jnp.tanh(self.stem(x))).mean((1, 2)))


def test_a_container_of_repeated_blocks_is_opened(check_cut):
    model = made(Encoded)
    model.eval()
    cut = lh.chain_from_nnx(model, IMAGES)
    inside = ("encoder", "encoder.layers.0", "encoder.layers.1", "encoder.norm")
    assert cut.chain.names == ("stem", *inside, "head")
    run, params = of_params(model)
    check_cut(cut, run, params, IMAGES, cut.context)
    text = cut.chain.describe()
    assert re.search(r"encoder\.layers\.1 .* 156 +35\.9% +conv, norm", text)
    assert "holds" not in text
    for form in (model, nnx.state(model), nnx.state(model, nnx.Param), nnx.to_pure_dict(params)):
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), cut.chain.split(form), cut.params))
    message = "must be the model, its `nnx.State`, or a dict of its `nnx.Param`s: what was given also holds `encoder."
    with pytest.raises(ValueError, match=re.escape(message)):
        cut.chain.split(nnx.to_pure_dict(nnx.state(model)))


class Nested(nnx.Module):
    """A U-Net's levels: each skips the one inside it."""

    def __init__(self, depth, rngs):
        self.down = nnx.Linear(3, 3, rngs=rngs)
        self.inner = Nested(depth - 1, rngs) if depth else nnx.Linear(3, 3, rngs=rngs)
        self.up = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.up(jnp.concatenate([self.inner(jnp.tanh(self.down(x))), x], -1))


class UNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Linear(3, 3, rngs=rngs)
        self.level = Nested(1, rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.level(jnp.tanh(self.stem(x))))


class Marked(UNet):
    """With a mark of its own."""

    def __call__(self, x):
        return self.head(lh.mark(self.level(lh.mark(jnp.tanh(self.stem(x)), "mine")), "levels"))


def as_proposed(model, sentence):
    """The model cut as a sentence of `describe` says, and into as many blocks."""
    arguments, blocks = re.search(r"`(at=.*)` makes (\d+) blocks", sentence).groups()
    cut = lh.chain_from_nnx(model, ROWS, **eval(f"dict({arguments})"))
    assert len(cut.chain) == int(blocks)
    return cut


def test_a_block_that_holds_most_is_told_with_what_splits_it(check_cut):
    model = made(UNet)
    cut = lh.chain_from_nnx(model, ROWS)
    assert cut.chain.names == ("stem", "level", "head")
    proposed = cut.chain.describe().splitlines()[-1]
    assert proposed == (
        '`level` holds 79.6% of the parameters: `at=["stem", "level.*", "head"], carry=True` makes 5 blocks, the '
        "largest with 45.9%; z carries what jumps over their ends."
    )
    split = as_proposed(model, proposed)
    assert split.chain.names == ("stem", "level.down", "level.inner", "level.up", "head")
    run, params = of_params(model)
    check_cut(split, run, params, ROWS)
    assert "From `level.down` to `level.up` z carries 2 arrays; H_z is by all of them." in split.chain.describe()


def test_marks_of_the_model_stay_beside_what_is_proposed():
    model = made(Marked)
    cut = lh.chain_from_nnx(model, ROWS)
    assert cut.chain.names == ("mine", "levels", "output")
    split = as_proposed(model, cut.chain.describe().splitlines()[-1])
    assert split.chain.names == ("stem", "mine", "level.down", "level.inner", "level.up", "head")


class Skipping(nnx.Module):
    """A U-Net without levels: its layers lie side by side, one takes its scale from a layer beside the chain."""

    def __init__(self, rngs):
        self.stem = nnx.Linear(3, 3, rngs=rngs)
        self.downs = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(3)])
        self.scale = nnx.Linear(3, 3, rngs=rngs)
        self.ups = nnx.List([nnx.Linear(6, 3, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        z, skipped = jnp.tanh(self.stem(x)), []
        for down in self.downs:
            z = jnp.tanh(down(z))
            skipped.append(z)
        z = z * self.scale(jnp.ones(3))
        for up in self.ups:
            z = jnp.tanh(up(jnp.concatenate([z, skipped.pop()], -1)))
        return self.head(z)


def test_a_block_of_several_modules_is_split_between_them(check_cut):
    model = made(Skipping)
    model.eval()
    cut = lh.chain_from_nnx(model, ROWS)
    *_, proposed = cut.chain.describe().splitlines()
    assert proposed == (
        '`downs.1` holds 59.5% of the parameters: `at=["stem", "downs.*", "ups.*", "head"], carry=True` makes 8 '
        "blocks, the largest with 25.2%; z carries what jumps over their ends."
    )
    split = as_proposed(model, proposed)
    assert split.chain.names == ("stem", *(f"{way}.{i}" for way in ("downs", "ups") for i in range(3)), "head")
    assert "From `downs.1` to `ups.2` z carries 2 to 3 arrays; H_z is by all of them." in split.chain.describe()
    run, params = of_params(model)
    check_cut(split, run, params, ROWS, split.context)


class Telling(Encoder):
    """Returns the values between its layers too."""

    def __call__(self, x):
        between = [x + self.position]
        for layer in self.layers:
            between.append(layer(between[-1]))
        return {"between": between, "last": self.norm(between[-1])}


class Told(Encoded):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.encoder = Telling(rngs)

    def __call__(self, x):
        return self.head(self.encoder(jnp.tanh(self.stem(x)))["last"].mean((1, 2)))


def test_what_a_container_returns_besides_is_no_part_of_z(check_cut):
    model = made(Told)
    model.eval()
    cut = lh.chain_from_nnx(model, IMAGES)
    assert cut.chain.names == ("stem", "encoder", "encoder.layers.0", "encoder.layers.1", "encoder.norm", "head")
    assert "carries" not in cut.chain.describe()
    run, params = of_params(model)
    check_cut(cut, run, params, IMAGES, cut.context)
    assert "carries" not in lh.chain_from_nnx(model, IMAGES, at=["stem", "encoder"]).chain.describe()
