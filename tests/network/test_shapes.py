"""One traced chain at inputs of several shapes, in any order: whatever is computed is what a fresh chain gives."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import localhessian as lh
from tests.marked import TOKENS, transformer, transformer_params
from tests.networks import drawn, squared_error

pytestmark = pytest.mark.relaxed


def weights():
    return {"a": drawn(0, 3, 4), "b": drawn(1, 4, 2)}


def marked(params, x):
    """The number of positions is a constant of the second block, and decides nothing of its shapes."""
    h = lh.mark(jnp.tanh(x @ params["a"]).sum(1), "a")
    return h @ params["b"] / x.shape[1]


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.b(jnp.tanh(self.a(x)).sum(1)) / x.shape[1]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(jnp.tanh(nn.Dense(4)(x)).sum(1)) / x.shape[1]


class Equinox(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear

    def __call__(self, x):
        return self.b(jnp.tanh(jax.vmap(self.a)(x)).sum(0)) / x.shape[0]


def cut_linen(x):
    model = Linen()
    return lh.chain_from_linen(model, model.init(jax.random.key(0), x), x)


def cut_equinox(x):
    keys = jax.random.split(jax.random.key(0))
    return lh.chain_from_equinox(Equinox(eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1])), x)


CUTS = {
    "marks": lambda x: lh.chain_from_function(marked, weights(), x),
    "nnx": lambda x: lh.chain_from_nnx(Nnx(), x),
    "linen": cut_linen,
    "equinox": cut_equinox,
}


def batch(length, n=3):
    return drawn(10 + length, n, length, 3), drawn(20, n, 2)


def curvature(chain, params, x, y, context):
    """What back-matching and the local Hessians of the second block say."""
    matching = lh.back_match(chain, params, x, y, squared_error, context)
    products = []
    for wrt, samples in (("params", None), ("input", None), ("input", 1)):
        operator = lh.local_hessian(matching, chain.names[1], wrt, samples=samples)
        products.append(operator.mv(jnp.cos(jnp.arange(operator.size, dtype=operator.dtype))))
    return matching.activations[1:], matching.gradients, products


def training(chain, params, x, y, context, gradients):
    """What trains."""
    stepped = lh.propagate(chain, params, x, y, squared_error, context=context)[0]
    optimizer = lh.scale_amended_sgd(chain, squared_error, 0.1, samples=2, probes=2)
    return stepped, optimizer.update(gradients, optimizer.init(params), params, x=x, y=y, context=context)[0]


def everything(chain, params, x, y, context):
    found = curvature(chain, params, x, y, context)
    return *found, training(chain, params, x, y, context, found[1])


compiled = {run: jax.jit(run, static_argnums=0) for run in (curvature, everything)}


def assert_near(got, expected, tol):
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        # Frameworks keep their parameters in float32, whatever the default is.
        relative = max(tol.identity, 80 * float(jnp.finfo(two.dtype).eps))
        np.testing.assert_allclose(one, two, rtol=0, atol=relative * float(np.max(np.abs(two))))


def fresh(kind, run, length, tol):
    """A chain cut for this shape alone, and its gradients once more by differentiating the whole of it."""
    x, y = batch(length)
    chain, params, context = CUTS[kind](x)
    found = compiled[run](chain, params, x, y, context)
    assert_near(found[1], jax.jit(jax.grad(lambda p: squared_error(chain.forward(p, x)[-1], y).mean()))(params), tol)
    return found


@pytest.mark.once
def test_shapes_alternate_in_any_order(tol):
    """A stale program is off by the ratio of the lengths; recency, tracing and what was cut first must not matter."""
    chain, params, context = CUTS["marks"](batch(4)[0])
    expected = {length: fresh("marks", everything, length, tol) for length in (4, 2)}
    for length in (2, 4, 4, 2):
        x, y = batch(length)
        assert_near(compiled[everything](chain, params, x, y, context), expected[length], tol)
        assert_near(everything(chain, params, x, y, context), expected[length], tol)
        context = chain.context_for(x, context)  # of the last shape, whatever the next one is
    assert not lh.check_identities(chain, params, *batch(4), squared_error, context, throw=False).failures
    x = batch(6)[0]
    z = chain.forward(params, x, context)
    np.testing.assert_allclose(z[-1], marked(weights(), x), rtol=tol.identity, atol=tol.identity)
    assert f"{x.dtype}[3,6,3]" in chain.describe(params, x, context)
    with pytest.raises(ValueError, match=r"block `output` got .* its `context` was derived for x"):
        chain.blocks[1](params["output"], z[1][:2], chain.context_for(x))


@pytest.mark.once
@pytest.mark.parametrize("kind", ["nnx", "linen", "equinox"])
def test_shapes_alternate_in_any_framework(kind, tol):
    chain, params, context = CUTS[kind](batch(4)[0])
    expected = {length: fresh(kind, curvature, length, tol) for length in (4, 2)}
    for length in (2, 4, 2):
        found = compiled[curvature](chain, params, *batch(length), context)
        assert_near(found, expected[length], tol)
        context = chain.context_for(batch(length)[0], context)


@pytest.mark.once
@pytest.mark.parametrize("types", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float16")])
def test_precision_of_parameters_and_inputs(types):
    """Cut in float32, run in any mixture: the types of the parameters are part of the key, tokens or not."""
    of_params, of_x = map(jnp.dtype, types)
    tokens = lh.chain_from_function(transformer, transformer_params(layers=1), TOKENS)
    half = jax.tree.map(lambda leaf: leaf.astype(of_params), transformer_params(layers=1))
    output = jax.jit(tokens.chain.forward)(tokens.chain.split(half), TOKENS, tokens.context)[-1]
    assert output.dtype == of_params
    assert_like(output, jax.jit(transformer)(half, TOKENS))
    chain, _, context = CUTS["marks"](batch(4)[0])
    half = {name: w.astype(of_params) for name, w in weights().items()}
    for length in (4, 2):
        x = batch(length)[0].astype(of_x)
        assert_like(jax.jit(chain.forward)(chain.split(half), x, context)[-1], jax.jit(marked)(half, x))


def assert_like(got, expected):
    """To a few roundings of the narrowest type: operations are the same, fused in other ways."""
    assert got.dtype == expected.dtype
    got, expected = (np.asarray(z, np.float64) for z in (got, expected))
    np.testing.assert_allclose(got, expected, rtol=0, atol=2.0**-5 * np.abs(expected).max())


@pytest.mark.once
def test_a_function_that_falls_into_other_blocks_at_another_shape():
    def moody(params, x):
        w = params["a"] if x.shape[1] == 3 else params["b"]
        return lh.mark(jnp.tanh(x.sum(1, keepdims=True) * w), "first") * params["c"]

    params = {name: drawn(i, 1, 2) for i, name in enumerate("abc")}
    chain, of_blocks, _ = lh.chain_from_function(moody, params, drawn(0, 2, 3))
    with pytest.raises(lh.CutError, match="falls into other blocks, or its blocks use other parameters"):
        chain.forward(of_blocks, drawn(0, 2, 4))


@pytest.mark.once
def test_settings_of_jax_are_those_where_the_chain_runs():
    chain, params, context = CUTS["marks"](batch(4)[0])

    def program(context):
        return str(jax.make_jaxpr(lambda p, x: chain.forward(p, x, context)[-1])(params, batch(4)[0]))

    with jax.default_matmul_precision("highest"):
        assert program(context).count("HIGHEST") > 0
    assert program(context).count("HIGHEST") == 0


@pytest.mark.once
def test_programs_of_one_chain_are_bounded():
    chain, params, _ = CUTS["marks"](batch(4)[0])
    for n in range(1, 41):
        assert jax.eval_shape(chain.forward, params, batch(3, n)[0])[-1].shape == (n, 2)
    x = batch(3, 1)[0]  # cut first, forgotten since
    np.testing.assert_allclose(chain.forward(params, x)[-1], marked(weights(), x), rtol=1e-4, atol=1e-5)
    kept = chain.source.program_for.cache_info()
    assert kept.currsize == kept.maxsize <= 32
