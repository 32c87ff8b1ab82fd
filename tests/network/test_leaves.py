"""What may stand in parameters, inputs, losses and blocks: it works, or one sentence says what to do."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import localhessian as lh
from tests.networks import array, cross_entropy, labels, linear, normal, squared_error, tanh_dense

pytestmark = pytest.mark.once

KEYS = jax.random.split(jax.random.key(0), 6)
RNG = np.random.default_rng(0)
X, Y, LABELS = normal(RNG, 5, 4), normal(RNG, 5, 3), labels(5, 3)


def dense(fan_in, fan_out):
    return {"kernel": normal(RNG, fan_in, fan_out), "bias": array([0.1] * fan_out)}


CHAIN = lh.Chain([lh.Block("hidden", tanh_dense), lh.Block("head", linear)])
PARAMS = {"hidden": dense(4, 4), "head": dense(4, 3)}


def refused(message, chain=CHAIN, params=PARAMS, x=X, y=Y, loss=squared_error, context=None, error=ValueError):
    with pytest.raises(error, match=message):
        lh.back_match(chain, params, x, y, loss, context)


def with_hidden(apply):
    return lh.Chain([lh.Block("hidden", apply), lh.Block("head", linear)])


def test_complex_numbers_are_refused_by_name():
    """Their imaginary part would be constant, and gradients below them conjugated: silently."""

    def fourier(params, z):
        return jnp.fft.rfft(linear(params, z), axis=-1)

    def head(params, z):
        return linear(params, jnp.abs(z))

    kernel = PARAMS["hidden"]["kernel"].astype(jnp.complex64)
    wave = PARAMS | {"hidden": PARAMS["hidden"] | {"kernel": kernel}}
    refused(
        r"parameters of block `hidden` must be real, got complex64 at `\['kernel'\]`: .* pair of reals", params=wave
    )
    refused(r"`x` must be real, got complex64: .* pair of reals", x=X.astype(jnp.complex64))
    chain = lh.Chain([lh.Block("hidden", fourier), lh.Block("head", head)])
    made = jnp.fft.rfft(X).dtype
    refused(rf"the output of block `hidden` must be real, got {made}: .* pair of reals", chain=chain)
    pairs = lh.Chain([lh.Block("hidden", lambda p, z: (linear(p, z), fourier(p, z))), *chain.blocks[1:]])
    refused(rf"the output of block `hidden` must be real, got {made} at `\[1\]`", chain=pairs)
    with pytest.raises(ValueError, match="`params` must be real, got complex64"):
        lh.chain_from_function(lambda p, x: lh.mark((x @ p).real, "a"), kernel, X)


def test_complex_numbers_inside_a_block_or_in_what_is_constant():
    """A filter in Fourier space with real parameters, a complex table as context, complex targets."""

    def filtered(params, z, context):
        real, imaginary = params
        waves = jnp.fft.rfft(z, axis=-1) * jax.lax.complex(real, imaginary)[None] * context[None]
        return jnp.fft.irfft(waves, n=4, axis=-1)

    chain = lh.Chain([lh.Block("filter", filtered), lh.Block("head", linear)])
    params = {"filter": (jnp.array([1.0, 0.5, 2.0]), jnp.array([0.1, 0.7, -0.2])), "head": PARAMS["head"]}
    table, y = jnp.array([1.0, 1.0j, 2.0]), jax.lax.complex(Y, -Y)

    def loss(z, y):
        return squared_error(z, y.real)

    matching = lh.back_match(chain, params, X, y, loss, table)
    matrix = np.asarray(lh.local_hessian(matching, "filter").to_dense(), np.float64)
    columns = []  # the block is linear in its parameters
    for e in np.eye(6):
        factor = (e[:3] + 1j * e[3:]) * np.asarray(table)
        columns.append(np.fft.irfft(np.fft.rfft(np.asarray(X, np.float64), axis=-1) * factor, n=4, axis=-1).ravel())
    jacobian = np.stack(columns, axis=1)
    np.testing.assert_allclose(matrix, jacobian.T @ jacobian / 5, atol=1e-5 * np.abs(matrix).max())


def test_blocks_and_losses_without_a_derivative_are_named():
    def fixed_point(params, z):
        def body(state):
            return state[0] + 1, jnp.tanh(linear(params, state[1]) + z)

        return jax.lax.while_loop(lambda state: state[0] < 3, body, (0, z))[1]

    def on_the_host(params, z):
        return jax.pure_callback(np.array, jax.ShapeDtypeStruct(z.shape, z.dtype), linear(params, z))

    sentence = r"cannot be differentiated forward and in reverse, .* write a `lax.while_loop` as a `lax.scan`"
    refused("block `hidden` " + sentence, chain=with_hidden(fixed_point))
    refused("block `hidden` " + sentence, chain=with_hidden(on_the_host))
    refused("`loss` " + sentence, loss=lambda z, y: squared_error(fixed_point(dense(3, 3), z), y))
    straight = jax.custom_vjp(jnp.floor)
    straight.defvjp(lambda z: (jnp.floor(z), None), lambda _, g: (g,))
    refused(r"block `hidden` has no forward derivative .*custom_vjp", chain=with_hidden(lambda p, z: straight(z)))


class Weighted(eqx.Module):
    """Neither its hash nor its `==` is one for compiled programs."""

    weights: jax.Array

    def __call__(self, z, y):
        return cross_entropy(z, y) * self.weights[y]


@dataclasses.dataclass
class Changeable:
    scale: float = 2.0

    def __call__(self, z, y):
        return self.scale * squared_error(z, y)


@dataclasses.dataclass(frozen=True)
class Frozen:
    scale: float = 2.0

    def __call__(self, z, y):
        return self.scale * squared_error(z, y)


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Equal to any other, whatever its scale: a program found by `==` would be of the wrong one."""

    scale: float = dataclasses.field(compare=False)

    def __call__(self, *arguments):  # a loss, or a block
        return self.scale * (tanh_dense if isinstance(arguments[0], dict) else squared_error)(*arguments)


class Methods:
    def __init__(self, scale):
        self.scale = scale

    def loss(self, z, y):
        return self.scale * squared_error(z, y)


def gradients(loss, y):
    """By back-matching, twice by equal programs if there are any, and by differentiating the whole."""
    matching = lh.back_match(CHAIN, PARAMS, X, y, loss)
    lh.local_hessian(matching, "head").mv(jnp.ones(15, X.dtype))
    truth = jax.grad(lambda p: loss(CHAIN.forward(p, X)[-1], y).mean())(PARAMS)
    return matching.gradients["hidden"]["kernel"], truth["hidden"]["kernel"]


@pytest.mark.parametrize(
    ("losses", "y"),
    [
        ([Weighted(jnp.array([1.0, 2.0, 3.0])), Weighted(jnp.array([3.0, 1.0, 1.0]))], LABELS),
        ([LeftOut(1.0), LeftOut(3.0)], Y),
        ([Frozen(1.0), Frozen(3.0), Frozen(3.0)], Y),
        ([functools.partial(lambda s, z, y: s * squared_error(z, y), s) for s in (1.0, 3.0)], Y),
        ([Methods(1.0).loss, Methods(3.0).loss], Y),
    ],
    ids=["equinox", "left out of ==", "frozen", "partial", "method"],
)
def test_losses_of_every_kind(losses, y):
    for loss in losses:
        ours, truth = gradients(loss, y)
        np.testing.assert_allclose(ours, truth, rtol=1e-4, atol=1e-6)


def test_what_can_be_changed_is_no_key_of_a_program():
    refused(
        r"`loss` is a Changeable, which has no hash .* `@dataclasses.dataclass\(frozen=True\)`",
        loss=Changeable(),
        error=TypeError,
    )
    with pytest.raises(TypeError, match="block `a`: `apply` is a Changeable, which has no hash"):
        lh.Block("a", Changeable())
    with pytest.raises(TypeError, match="the product is a Changeable, which has no hash"):
        lh.symmetric_operator(Changeable(), 3)


def test_blocks_of_every_kind():
    class Scaled(eqx.Module):
        scale: jax.Array

        def __call__(self, params, z):
            return tanh_dense(params, z) * self.scale

    for one in (Scaled(jnp.array(1.0)), Scaled(jnp.array(3.0)), LeftOut(1.0), LeftOut(3.0)):
        chain = with_hidden(one)
        matching = lh.back_match(chain, PARAMS, X, Y, squared_error)
        truth = jax.grad(lambda p, c=chain: squared_error(c.forward(p, X)[-1], Y).mean())(PARAMS)
        np.testing.assert_allclose(matching.gradients["hidden"]["bias"], truth["hidden"]["bias"], rtol=1e-4, atol=1e-6)


def test_what_is_no_array_is_named():
    mlp = eqx.nn.MLP(4, 4, 4, 1, key=KEYS[4])
    chain = with_hidden(lambda module, z: jax.vmap(module)(z))
    refused(
        r"parameters of block `hidden` must hold arrays of numbers only, got .* at `\.activation.*`: .*eqx.partition",
        chain=chain,
        params=PARAMS | {"hidden": mlp},
    )
    arrays, rest = eqx.partition(mlp, eqx.is_array)
    works = with_hidden(lambda arrays, z: jax.vmap(eqx.combine(arrays, rest))(z))
    matching = lh.back_match(works, PARAMS | {"hidden": arrays}, X, Y, squared_error)
    assert lh.local_hessian(matching, "hidden").size == 4 * 4 + 4 + 4 * 4 + 4
    refused(r"`y` must hold arrays of numbers only, got str at `\[0\]`", y=["cat", "dog"])
    refused(r"`y` must hold arrays of numbers only, got an array of <U3", y=np.array(["cat"] * 5))
    refused(r"`context` must hold arrays of numbers only, got PjitFunction at `\['act'\]`", context={"act": jnp.tanh})
    with pytest.raises(ValueError, match=r"`params` must hold arrays of numbers only, got .* at `\.activation"):
        lh.chain_from_function(lambda m, x: lh.mark(jax.vmap(m)(x), "a"), mlp, X)


def test_random_keys_among_parameters_and_inputs():
    """They have no derivative, and the spectra are those of the same block with the drawn mask written out."""

    def kept(keys):
        return jax.vmap(lambda key: jax.random.bernoulli(key, 0.8, (4,)))(keys).astype(X.dtype)

    def noisy(params, z):
        h, keys = z
        keep = kept(keys)
        return tanh_dense(params["dense"], h) * keep * jax.random.uniform(params["key"], (1, 4))

    def written_out(params, z):
        return tanh_dense(params["dense"], z[0]) * z[1]

    keys, key = jax.random.split(KEYS[4], 5), KEYS[5]
    keep = kept(keys) * jax.random.uniform(key, (1, 4))
    reports = []
    for apply, x, of_block in (
        (noisy, (X, keys), {"dense": PARAMS["hidden"], "key": key}),
        (written_out, (X, keep), {"dense": PARAMS["hidden"]}),
    ):
        params = PARAMS | {"hidden": of_block}
        reports.append(lh.analyze(with_hidden(apply), params, x, Y, squared_error, wrt=("params",)))
    ours, truth = ([row.lambda_max for row in report.rows] for report in reports)
    np.testing.assert_allclose(ours, truth, rtol=1e-5)

    def handing_on(params, z):
        return noisy(params, z), z[1]

    chain = lh.Chain([lh.Block("a", handing_on), lh.Block("head", lambda p, z: linear(p, z[0]))])
    params = {"a": {"dense": PARAMS["hidden"], "key": key}, "head": PARAMS["head"]}
    matching = lh.back_match(chain, params, (X, keys), Y, squared_error)
    assert (matching.targets[1][1] == keys).all()
    np.testing.assert_array_equal(matching.targets[1][0], matching.activations[1][0] + matching.displacements[1][0])
    stepped, _ = lh.propagate(chain, params, (X, keys), Y, squared_error)
    np.testing.assert_allclose(
        stepped["a"]["dense"]["kernel"],
        params["a"]["dense"]["kernel"] - 0.1 * matching.gradients["a"]["dense"]["kernel"],
        rtol=1e-5,
        atol=1e-6,
    )


def test_meshes():
    """Automatic axes work; explicit ones, and those of a `shard_map` that checks them, are refused in one sentence."""
    explicit, automatic = (jax.make_mesh((1,), ("data",), axis_types=(t,)) for t in (AxisType.Explicit, AxisType.Auto))
    spread = jax.device_put(X, NamedSharding(explicit, PartitionSpec("data")))
    refused(r"`x` lies on a mesh with explicit axes, .* axis_types=\(jax.sharding.AxisType.Auto,\)", x=spread)

    def gradient(x, y):
        return lh.back_match(CHAIN, PARAMS, x, y, squared_error).gradients["head"]["kernel"]

    def mapped(check_vma):
        specs = (PartitionSpec("data"), PartitionSpec("data"))
        return jax.shard_map(gradient, mesh=automatic, in_specs=specs, out_specs=PartitionSpec(), check_vma=check_vma)

    with pytest.raises(
        ValueError, match=r"`x` varies over the mesh axis `data` of `jax.shard_map`: pass `check_vma=False"
    ):
        mapped(True)(X, Y)
    expected = gradient(X, Y)
    np.testing.assert_allclose(mapped(False)(X, Y), expected, rtol=1e-5, atol=1e-6)
    placed = jax.device_put(X, NamedSharding(automatic, PartitionSpec("data")))
    np.testing.assert_allclose(gradient(placed, Y), expected, rtol=1e-5, atol=1e-6)
