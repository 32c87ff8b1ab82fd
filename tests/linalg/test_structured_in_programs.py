"""Structured spectra inside compiled programs, against the host and dense float64; and structure that is not there."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from layers import KINDS, block_hessian, parameters, pooled

import localhessian as lh
from localhessian.linalg.structure import _structured

pytestmark = pytest.mark.once


def fixed_norm(params, z):
    return jax.nn.relu(networks.linear(params, z) * params["norm"]["gamma"][None] * 0.7 + params["norm"]["beta"][None])


def softplus_dense(params, z):
    return jax.nn.softplus(networks.linear(params, z))


def max_pool(params, z):
    del params
    return jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def pooled_anywhere(params, z):
    """Windows that overlap, and padding."""
    u = networks.conv(params, z)
    return jax.lax.reduce_window(u, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


KERNEL = {"kernel": networks.drawn(0, 3, 3, 2, 3) / 3, "bias": networks.drawn(1, 3)}
IMAGES = networks.drawn(2, 4, 4, 4, 2)
DENSE, NORM = parameters("dense"), parameters("norm")
SQUARE = {"kernel": networks.drawn(0, 5, 5), "bias": networks.drawn(1, 5)}
# Function, parameters, input, and the rest of what `block_hessian` takes.
LAYERS = {
    "tanh": (networks.tanh_dense, DENSE, networks.drawn(4, 9, 5)),
    "fewer samples than inputs": (networks.tanh_dense, DENSE, networks.drawn(4, 3, 5)),
    "relu": (networks.relu_dense, DENSE, networks.drawn(4, 9, 5)),
    "softplus": (softplus_dense, DENSE, networks.drawn(4, 9, 5)),
    "no activation": (networks.linear, DENSE, networks.drawn(4, 9, 5)),
    "statistics as they are": (fixed_norm, NORM, networks.drawn(4, 9, 5)),
    "batch normalization": (*KINDS["batch normalization"], networks.drawn(4, 9, 5)),
    "a skip around": (*KINDS["a skip around"], networks.drawn(4, 6, 5)),
    "several heads": (*KINDS["several heads"], networks.drawn(4, 6, 5)),
    "in a checkpoint": (*KINDS["in a checkpoint"], networks.drawn(4, 6, 5)),
    "convolution": (networks.conv, KERNEL, IMAGES),
    "convolution and pooling": (pooled, KERNEL, IMAGES),
    "pooling that overlaps": (pooled_anywhere, KERNEL, IMAGES),
    "samples": (networks.relu_dense, DENSE, networks.drawn(4, 6, 5), "input", range(6)),
    "some samples": (networks.tanh_dense, DENSE, networks.drawn(4, 6, 5), "input", (4, 1)),
    "samples without activation": (networks.linear, DENSE, networks.drawn(4, 6, 5), "input", range(6)),
    "samples with a skip": (networks.skip_dense, SQUARE, networks.drawn(4, 6, 5), "input", range(6)),
    "samples of a convolution": (pooled, KERNEL, IMAGES, "input", range(4)),
    "samples of a pooling": (max_pool, (), IMAGES, "input", range(4)),
    "the whole batch": (networks.relu_dense, DENSE, networks.drawn(4, 6, 5), "input"),
}
REPETITIVE = {
    "softplus",
    "statistics as they are",
    "several heads",
    "in a checkpoint",
    "convolution",
    "samples without activation",
    "the whole batch",
}
OF_MAPS = {"samples of a convolution"}
"""What the host declines: a batch of which no map splits."""


def expanded(spectrum):
    """Every eigenvalue of every map, ascending, in float64."""
    values, copies = (np.asarray(part) for part in (spectrum.eigenvalues, spectrum.multiplicities))
    values, copies = (part.reshape(-1, part.shape[-1]) for part in (values.astype(np.float64), copies))
    return [np.repeat(row, number) for row, number in zip(values, copies, strict=True)]


def figures(operator, method=None):
    found = lh.spectrum(operator, method)
    return found, lh.condition_number(found), lh.summarize(found)


def check(make, params, tol, of_host=True):
    """`make(params)` under jit against dense float64, and against the host's route; what was found."""
    operator = make(params)
    found, kappa, summary = jax.jit(lambda params: figures(make(params), lh.Structured()))(params)
    assert np.all(np.asarray(found.status) == lh.Status.CONVERGED)
    assert np.all(found.complete)
    assert found.method.startswith("Structured")
    matrices = np.asarray(operator.to_dense(), np.float64).reshape(-1, operator.size, operator.size)
    for values, matrix in zip(expanded(found), matrices, strict=True):
        exact = np.linalg.eigvalsh(matrix)
        assert len(values) == len(exact)
        np.testing.assert_allclose(values, exact, atol=10 * tol.eigenvalue * max(exact[-1], 1e-30))
    np.testing.assert_allclose(
        summary.trace, np.trace(matrices, axis1=1, axis2=2).reshape(operator.batch or ()), rtol=1e-5
    )
    if of_host:
        _, exact, _ = figures(operator, lh.Structured())
        np.testing.assert_array_equal(kappa.rank, exact.rank)
        doubtful = np.asarray(kappa.status) != lh.Status.CONVERGED
        # The interval has the host's value, up to the rounding of this program's products.
        assert np.all((kappa.lower <= exact.value * (1 + 1e-5)) | doubtful)
        assert np.all((kappa.upper >= exact.value * (1 - 1e-5)) | doubtful)
    return found


@pytest.mark.parametrize("name", networks.waiting(LAYERS, LAYERS.keys() - REPETITIVE))
def test_layers(tol, name):
    apply, params, z, *how = LAYERS[name]
    params = parameters(params) if isinstance(params, str) else params
    found = check(lambda params: block_hessian(apply, params, z, *how), params, tol, name not in OF_MAPS)
    if name == "no activation":
        assert found.eigenvalues.shape == (6,)
        np.testing.assert_array_equal(found.multiplicities, 4)
    if name == "samples of a pooling":
        assert found.eigenvalues.shape == (4, 9)  # one for each window, and the zeros


@pytest.mark.parametrize("wrt", ["params", "input"])
@pytest.mark.parametrize("loss", [networks.cross_entropy, networks.squared_error])
def test_the_last_block(tol, loss, wrt):
    case = networks.mlp(loss=loss)

    def head(params):
        matching = lh.back_match(case.chain, params, case.x, case.y, case.loss)
        return lh.local_hessian(matching, "head", wrt, samples=None if wrt == "params" else range(7))

    check(head, case.params, tol)


def test_what_is_chosen_by_itself(tol):
    """Where the host takes `Structured()`, so does a program; elsewhere `Dense()`."""
    case = networks.mlp()
    matched = lambda params: lh.back_match(case.chain, params, case.x, case.y, case.loss)
    methods = {}

    def values(params):
        H_W, full = (lh.local_hessian(matched(params), "layer0", part=part) for part in ("gauss_newton", "full"))
        H_z = lh.local_hessian(matched(params), "layer1", "input", samples=2)  # alone, and it does not split
        found = {name: lh.spectrum(H) for name, H in (("H_W", H_W), ("full", full), ("H_z", H_z))}
        methods.update({name: spectrum.method for name, spectrum in found.items()})
        return found["H_W"].lambda_max

    exact = lh.spectrum(lh.local_hessian(matched(case.params), "layer0")).lambda_max
    np.testing.assert_allclose(jax.jit(values)(case.params), exact, rtol=10 * tol.eigenvalue)
    assert {name: method.split("(")[0] for name, method in methods.items()} == {
        "H_W": "Structured",
        "full": "Dense",
        "H_z": "Dense",
    }


def test_networks_side_by_side_equal_one_by_one_and_share_a_program(count_compilations):
    z = networks.drawn(4, 20, 5)
    stack = {
        "kernel": networks.drawn(0, 8, 5, 4) * jnp.linspace(0.1, 0.8, 8)[:, None, None],
        "bias": networks.drawn(1, 8, 4),
    }

    def kappa(params):
        return lh.condition_number(lh.spectrum(block_hessian(networks.tanh_dense, params, z), lh.Structured()))

    together = jax.jit(jax.vmap(kappa))(stack)
    one = jax.jit(kappa)
    networks_apart = [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(8)]
    first = one(networks_apart[0])
    with count_compilations() as seen:
        singles = [first, *(one(params) for params in networks_apart[1:])]
    assert seen.names == []
    for i, single in enumerate(singles):
        assert int(single.status) == int(together.status[i]) == lh.Status.CONVERGED
        assert single.lower * (1 - 1e-5) <= together.value[i] <= single.upper * (1 + 1e-5)


def conditioned(kappa, n=40, d=12):
    """Inputs with this condition number, squared."""
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.standard_normal((k, d)))[0] for k in (n, d))
    return left * np.geomspace(1, kappa**-0.5, d) @ right.T


@pytest.mark.skipif(jnp.result_type(float) != jnp.float32, reason="of float32 numbers")
@pytest.mark.parametrize("kappa", [1e4, 1e6, 1e10])
def test_what_float32_can_and_cannot_tell(kappa):
    """A singular value of 1e-3 sigma_max is told by an interval that holds it; one of 1e-5, near 100 eps, is not."""
    inputs = jnp.asarray(conditioned(kappa), jnp.float32)
    params = networks.drawn(3, 12, 3) / 4
    make = lambda w: block_hessian(lambda w, z: jnp.tanh(z @ w), w, inputs)
    found = jax.jit(lambda w: lh.condition_number(lh.spectrum(make(w), lh.Structured())))(params)
    factor = make(params).factor.to_dense()
    sigma = np.linalg.svd(np.asarray(factor, np.float64), compute_uv=False)
    if kappa < 1e10:
        assert int(found.status) in (lh.Status.CONVERGED, lh.Status.RANK_UNCERTAIN)
        assert int(found.rank) == 36
        assert float(found.lower) <= (sigma[0] / sigma[-1]) ** 2 <= float(found.upper)
        np.testing.assert_allclose(found.value, (sigma[0] / sigma[-1]) ** 2, rtol=2e-5 * kappa**0.5)
    else:
        assert int(found.status) == lh.Status.RANK_UNCERTAIN
        assert float(found.gap) < 10


def test_dead_units_zeros_and_samples_that_are_not_finite():
    dead = DENSE | {"bias": jnp.asarray([0.0, 0.0, -100.0, 0.0])}
    z = networks.drawn(4, 6, 5)

    @jax.jit
    def of_relu(params, z):
        return figures(block_hessian(networks.relu_dense, params, z), lh.Structured())[:2]

    found, kappa = of_relu(dead, z)
    exact = lh.condition_number(lh.spectrum(block_hessian(networks.relu_dense, dead, z)))
    assert int(kappa.rank) == int(exact.rank) <= 18
    assert bool(found.complete)
    _, kappa = of_relu(DENSE | {"bias": jnp.full(4, -100.0)}, z)
    assert (int(kappa.status), int(kappa.rank)) == (lh.Status.ZERO, 0)
    of_samples = jax.jit(
        lambda z: lh.spectrum(block_hessian(networks.tanh_dense, DENSE, z, "input", range(6)), lh.Structured())
    )
    broken = of_samples(z.at[2, 0].set(jnp.nan))
    assert np.asarray(broken.status).tolist() == [0, 0, lh.Status.NON_FINITE, 0, 0, 0]
    assert np.isnan(broken.eigenvalues[2]).all()
    assert np.isfinite(np.delete(np.asarray(broken.eigenvalues), 2, axis=0)).all()


def lie_about_columns(found, prepared):
    """The layout with the variables of each block in another's place."""
    layout = _structured_of_units(found, prepared)
    groups = [dataclasses.replace(group, columns=np.roll(group.columns, 1, axis=0)) for group in layout.groups]
    return dataclasses.replace(layout, groups=groups)


_structured_of_units = _structured.of_units


@pytest.mark.parametrize("lie", ["another layout", "a constant", "another's factor"])
def test_what_is_not_there_is_not_confirmed(lie, monkeypatch):
    if lie == "another layout":
        monkeypatch.setattr(_structured, "of_units", lie_about_columns)
    add = 0.1 if lie == "a constant" else 0.0

    def of(X, S):
        forward = lambda v: ((X @ v.reshape(5, 4)) * S).ravel() + add * S.ravel()
        backward = lambda u: (X.T @ (u.reshape(6, 4) * S)).ravel()
        R = lh.linear_map(forward, backward, 20, 24)
        if lie != "another's factor":
            return R
        return lh.symmetric_operator(lambda v: 1.1 * backward(forward(v)), 20, factor=R)

    found, kappa, summary = jax.jit(lambda *args: figures(of(*args), lh.Structured()))(
        networks.drawn(0, 6, 5), networks.drawn(1, 6, 4)
    )
    assert int(found.status) == int(kappa.status) == lh.Status.NOT_CONFIRMED
    assert not bool(found.complete)
    assert np.isinf(found.residual_norms).all()
    assert np.isnan(kappa.value)
    assert np.isinf(kappa.upper)
    assert np.isnan(summary.trace)
    assert "random vector" in lh.Status.NOT_CONFIRMED.message
    honest = jax.jit(
        lambda X, S: lh.spectrum(lh.linear_map(lambda v: ((X @ v.reshape(5, 4)) * S).ravel(), None, 20, 24))
    )
    monkeypatch.undo()
    assert int(honest(networks.drawn(0, 6, 5), networks.drawn(1, 6, 4)).status) == lh.Status.CONVERGED


def traced_tokens(method):
    tokens = jnp.asarray([[0, 1, 1], [2, 0, 5], [1, 1, 1]])
    embed = lambda z: lh.spectrum(block_hessian(lambda p, z: p[z], networks.drawn(0, 6, 4), z), method)
    return jax.jit(embed)(tokens)


def of_params(method):
    make = lambda params: block_hessian(networks.tanh_dense, params, networks.drawn(4, 9, 5))
    return jax.jit(lambda params: lh.spectrum(make(params), method))(DENSE)


@pytest.mark.parametrize(
    ("run", "method", "sentence"),
    [
        (traced_tokens, lh.Structured(), "it chooses by numbers that are not known while JAX traces it. Use another"),
        (of_params, lh.Structured(blocks=lh.GolubKahan()), "`blocks` needs its numbers"),
        (of_params, lh.Structured(max_size=2), "but `max_size` = 2 is less than the 6 needed"),
        (of_params, lh.Structured(max_bytes=1000), "but `max_bytes` = 1e"),
    ],
)
def test_what_is_refused_when_jax_traces(run, method, sentence):
    with pytest.raises(ValueError, match=r"`Structured` declines H_W of block `block`") as error:
        run(method)
    assert sentence in str(error.value)
