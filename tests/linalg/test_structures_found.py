"""Structure that is found is there: random layers, every complete spectrum against dense float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import localhessian as lh
from localhessian._programs import evaluate
from localhessian.linalg.structure._moves import of_constants

pytestmark = pytest.mark.once

BIASES = ("channel", "scalar", "group", "shared", "places", "twice")
ACTIVATIONS = (lambda u: u, jnp.tanh, jax.nn.relu, jax.checkpoint(jax.nn.softplus), jax.jit(jax.nn.silu))


def dense(p, z):
    return jnp.einsum("ntd,dc->ntc", z, p["w"])


def convolution(p, z, groups=1):
    return jax.lax.conv_general_dilated(z, p["w"], (1,), "SAME", None, None, ("NWC", "WIO", "NWC"), groups)


def layer(random, n, t, d, c):
    """A function of (params, z) made of random parts, and its params."""
    kind = random.choice(["dense", "convolution", "grouped"])
    shape = {"dense": (d, c), "convolution": (3, d, c), "grouped": (3, d // 2, c)}[kind]
    biases = list(random.choice(BIASES, size=random.integers(0, 4), replace=False))
    scale, activation = bool(random.integers(2)), ACTIVATIONS[random.integers(len(ACTIVATIONS))]
    skip, after = bool(random.integers(2)), bool(random.integers(2))
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape))
    params = {"w": draw(*shape)}
    shapes = {"channel": (c,), "scalar": (), "group": (2,), "shared": (c,), "places": (t, 1), "twice": (c,)}
    params |= {name: draw(*shapes[name]) for name in biases}
    params |= {"scale": draw(c)} if scale else {}

    def apply(p, z):
        u = {"dense": dense, "convolution": convolution, "grouped": lambda p, z: convolution(p, z, 2)}[kind](p, z)
        for name in biases:
            bias = p[name]
            u = u + {
                "group": lambda b: jnp.repeat(b, c // 2),
                "shared": lambda b: b + b[::-1],
                "twice": lambda b: b + b,
            }.get(name, lambda b: b)(bias)
        u = u * p["scale"] if scale and not after else u
        u = activation(u)
        u = u * p["scale"] if scale and after else u
        return z[..., :1] + u if skip else u

    return apply, params, (kind, *biases, scale, skip)


def check(seed, transform=lambda function: function):
    random = np.random.default_rng(seed)
    n, t, d, c = 3, 2, 4, 4
    apply, params, what = layer(random, n, t, d, c)
    z = jnp.asarray(random.standard_normal((n, t, d)))
    flat, unravel = ravel_pytree(params)
    outputs = lambda v: apply(unravel(v), z).ravel()
    both = jax.jit(lambda at: (jax.linearize(outputs, at)[1], jax.jacfwd(outputs)(at)))
    spectrum = lambda at: lh.spectrum(lh.linear_map(both(at)[0], None, flat.size, n * t * c))
    found = transform(spectrum)(flat)
    assert int(found.status) == lh.Status.CONVERGED, what
    sigma = np.linalg.svd(np.asarray(both(flat)[1], np.float64), compute_uv=False)
    truth = np.sort(np.concatenate([np.zeros(flat.size - len(sigma)), sigma**2]))
    copies = np.asarray(found.multiplicities)
    assert (copies > 0).all(), what
    assert copies.sum() == flat.size, what
    values = np.sort(np.repeat(np.asarray(found.eigenvalues, np.float64), copies))
    # Singular values are right to 10 eps sigma_max, and products round at 2 eps more in these layers.
    eps = float(jnp.finfo(flat.dtype).eps)
    np.testing.assert_allclose(np.sqrt(values), np.sqrt(truth), atol=30 * eps * sigma.max(), err_msg=str(what))
    return found.method


@pytest.mark.full
def test_random_layers_inside_programs_against_dense_float64():
    with jax.numpy_rank_promotion("allow"):
        methods = [check(seed, jax.jit) for seed in range(100, 140)]
    assert sum(method.startswith("Structured") for method in methods) >= 10


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 100), marks=pytest.mark.full)])
def test_random_layers_against_dense_float64(seeds):
    with jax.numpy_rank_promotion("allow"):
        methods = [check(seed) for seed in seeds]
    assert sum(method.startswith("Structured") for method in methods) >= 10


@pytest.mark.full
def test_two_thousand_random_layers_against_dense_float64():
    with jax.numpy_rank_promotion("allow"):
        for seed in range(100, 2100):
            check(seed)


REMAT = {
    "none": lambda f: f,
    "checkpoint": jax.checkpoint,
    "policy": lambda f: jax.checkpoint(f, policy=jax.checkpoint_policies.dots_saveable),
    "jit": jax.jit,
    "cond": lambda f: lambda u: jax.lax.cond(u.sum() < 1e9, f, lambda u: 2 * u, u),
    "scan": lambda f: lambda u: jax.lax.scan(lambda carry, _: (f(carry), None), u, None, length=2)[0],
}


@pytest.mark.parametrize("wrap", REMAT)
def test_activations_in_any_wrapping(wrap):
    """Programs are run as JAX runs them, or the route is declined: never an exception."""
    w = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
    z = jnp.sin(jnp.arange(20.0)).reshape(5, 4)
    mish = jax.custom_jvp(lambda u: u * jnp.tanh(jax.nn.softplus(u)))
    mish.defjvps(lambda t, out, u: t * jax.grad(lambda u: (u * jnp.tanh(jax.nn.softplus(u))).sum())(u))
    for activation in map(REMAT[wrap], (jax.nn.softplus, jax.nn.mish, jax.nn.relu6, jax.nn.gelu, mish)):
        outputs = lambda v, a=activation: a(z @ v.reshape(4, 3)).ravel()
        R = lh.linear_map(jax.linearize(outputs, w.ravel())[1], None, 12, 15)
        assert lh.explain(R).reason
        found = lh.spectrum(R)
        values = np.sort(np.repeat(np.asarray(found.eigenvalues, np.float64), np.asarray(found.multiplicities)))
        truth = np.linalg.svd(np.asarray(jax.jit(jax.jacfwd(outputs))(w.ravel()), np.float64), compute_uv=False)[::-1]
        np.testing.assert_allclose(np.sqrt(values), truth, atol=30 * float(jnp.finfo(w.dtype).eps) * truth.max())


def test_a_large_head_is_declined_before_its_rows_are_decomposed(monkeypatch):
    """500 classes over 256 tokens took 20 s and 1.5 GiB to decline."""

    def never(*_):
        raise AssertionError("rows were decomposed")

    monkeypatch.setattr("localhessian.linalg.structure._khatri_rao._independent_rows", never)
    chain = lh.Chain([lh.Block("a", lambda p, z: p * z), lh.Block("head", lambda p, z: z @ p)])
    x, y = jnp.sin(jnp.arange(60.0 * 8)).reshape(2, 30, 8), jnp.zeros((2, 30), int)
    losses = lambda z, y: -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[..., None], -1)[..., 0], 1)
    params = {"a": jnp.ones(()), "head": jnp.cos(jnp.arange(8.0 * 100)).reshape(8, 100)}
    operator = lh.local_hessian(lh.back_match(chain, params, x, y, losses), "head")
    explanation = lh.explain(operator, lh.Structured(max_size=500))
    assert "it has one (Khatri-Rao), but `max_size` = 500 is less than the 800 needed" in explanation.reason


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_what_numpy_makes_of_constants_is_what_jax_makes_to_the_bit(dtype):
    numbers = np.random.default_rng(0).standard_normal((2, 3, 4)) * 10.0 ** np.arange(-20, 40, 2.5).reshape(2, 3, 4)
    x = jnp.asarray(numbers, "float32").at[0, 0, 0].set(jnp.nan).astype(dtype)

    def program(x):
        y = jax.lax.expand_dims(x.transpose(2, 0, 1), (0,)).reshape(8, 3)[::-1]
        y = jnp.concatenate([y[2:7:2], jnp.broadcast_to(y[:1], (2, 3))]) * y[3:] - jnp.tile(y[:1], (5, 1))
        parts = [part.squeeze(1) for part in jnp.split(y + y, 3, axis=1)]
        return [-parts[0], parts[1].astype("float32"), parts[2].astype("bfloat16"), jnp.exp(parts[0].astype("float32"))]

    traced = jax.make_jaxpr(program)(x)
    found = evaluate(traced, [x], of_constants)
    for one, other in zip(found, program(x), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
