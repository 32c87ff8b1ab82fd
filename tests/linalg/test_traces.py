"""Traces, diagonals, norms and the range mean against closed forms, with error bars that mean what they say."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax.tree_util import Partial

import localhessian as lh
from localhessian.linalg import gram, matrix_map

D = 60
METHODS = (lh.Hutchinson, lh.HutchPlusPlus, lh.XTrace)
SPECTRA = {
    "geometric": np.geomspace(1e-6, 1, D),
    "linear": np.linspace(0, 1, D),
    "indefinite": np.r_[-np.ones(20), np.linspace(0, 1, 40)],
    "rank five": np.r_[np.zeros(D - 5), 1.0, 2.0, 3.0, 4.0, 5.0],
    "small": 1e-12 * np.linspace(1, 2, D),
    "zero": np.zeros(D),
    "identity": np.ones(D),
}


def times(matrix, v):
    return jnp.matmul(matrix, v, precision="highest")


def operator_of(matrix):
    return lh.symmetric_operator(Partial(times, matrix), D)


BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
MATRICES = np.stack([(BASIS * values) @ BASIS.T for values in SPECTRA.values()])
MATRICES = (MATRICES + np.swapaxes(MATRICES, 1, 2)) / 2


@pytest.fixture(scope="module")
def trials():
    """Function -> its estimates and errors of every spectrum by 60 keys, `(7, 60)`, in one program."""

    def run(estimate):
        keys = jax.random.split(jax.random.key(3), 60)
        over_keys = jax.jit(jax.vmap(lambda matrix: jax.vmap(lambda key: estimate(operator_of(matrix), key=key))(keys)))
        found = over_keys(jnp.asarray(MATRICES))
        return np.asarray(found.value, np.float64), np.asarray(found.standard_error, np.float64)

    return run


@pytest.mark.parametrize("method", METHODS)
def test_traces_lie_within_their_error_bars(method, trials, tol):
    values, errors = trials(lambda operator, key: lh.trace(operator, method(probes=24), key=key))
    truth = np.trace(MATRICES, axis1=1, axis2=2)[:, None]
    rounding = tol.eigenvalue * np.sum(np.abs(np.linalg.eigvalsh(MATRICES)), axis=1)[:, None]
    off = np.abs(values - truth)
    # The standard error of XTrace is known to be too small on steep spectra; six of them, and never a factor of three.
    sigmas = 6 if method is lh.XTrace else 4
    assert np.all(np.mean(off <= sigmas * errors + rounding, axis=1) >= 0.95)
    spread, claimed = (np.sqrt(np.mean(part**2, axis=1)) for part in (off, errors))
    random = spread > 3 * rounding[:, 0]
    assert np.all(spread[random] < 3 * claimed[random])
    assert np.all(claimed[random] < 3 * spread[random])


def test_low_rank_costs_no_error_and_decay_little(trials):
    by_method = {
        method: trials(lambda operator, key, method=method: lh.trace(operator, method(probes=24), key=key))[0]
        for method in (lh.Hutchinson, lh.XTrace)
    }
    names = list(SPECTRA)
    for name, gain in (("rank five", 1e-4), ("geometric", 0.8)):
        at = names.index(name)
        spread = {method: np.std(values[at]) for method, values in by_method.items()}
        assert spread[lh.XTrace] < gain * spread[lh.Hutchinson]


@pytest.mark.parametrize("figure", ["frobenius_norm", "range_mean"])
def test_figures_of_both_traces_lie_within_their_error_bars(figure, trials, tol):
    values, errors = trials(lambda operator, key: getattr(lh, figure)(operator, lh.Hutchinson(probes=24), key=key))
    eigenvalues = np.stack(list(SPECTRA.values()))
    squares = np.sum(eigenvalues**2, axis=1)
    with np.errstate(invalid="ignore"):
        truth = np.sqrt(squares) if figure == "frobenius_norm" else squares / np.sum(eigenvalues, axis=1)
    definite = [name not in {"indefinite", "zero"} for name in SPECTRA]
    covered = np.abs(values - truth[:, None]) <= 4 * errors + 10 * tol.eigenvalue * np.abs(truth)[:, None]
    assert np.all(np.mean(covered, axis=1)[definite] >= 0.95)
    zero = values[list(SPECTRA).index("zero")]
    assert np.all(zero == 0) if figure == "frobenius_norm" else np.isnan(zero).all()


def test_diagonals_lie_within_their_error_bars():
    matrix = MATRICES[0]
    found = lh.diagonal(operator_of(jnp.asarray(matrix)), lh.Hutchinson(probes=40))
    off = np.abs(np.asarray(found.value) - np.diag(matrix))
    assert np.mean(off <= 3 * np.asarray(found.standard_error)) >= 0.95
    expected = np.sqrt((np.sum(matrix**2, axis=1) - np.diag(matrix) ** 2) / 40)
    np.testing.assert_allclose(np.median(found.standard_error / expected), 1, rtol=0.2)


@pytest.mark.parametrize("shape", [(7, 4), (4, 50), (50, 4)])
def test_few_dimensions_are_exact_and_batches_have_an_axis(shape, tol):
    """On either side of the factor."""
    factors = networks.drawn(0, 3, *shape)
    wide = np.asarray(factors, np.float64)
    products = np.einsum("smd,sme->sde", wide, wide)
    operator, symmetric = gram(matrix_map(factors)), np.sqrt(np.sum(products**2, axis=(1, 2)))
    traces = np.trace(products, axis1=1, axis2=2)
    near = {"rtol": 10 * tol.eigenvalue}
    for method in METHODS:
        found = lh.trace(operator, method())
        assert found.exact
        np.testing.assert_allclose(found.value, traces, **near)
    np.testing.assert_allclose(lh.frobenius_norm(operator).value, symmetric, **near)
    np.testing.assert_allclose(lh.range_mean(operator).value, symmetric**2 / traces, **near)
    if shape != (50, 4):
        diagonals = lh.diagonal(operator)
        assert diagonals.exact
        np.testing.assert_allclose(diagonals.value, np.einsum("sdd->sd", products), rtol=100 * tol.eigenvalue)


@pytest.mark.once
def test_batched_estimates_are_those_of_each():
    factors = networks.drawn(0, 3, 50, 40)
    for method in (lh.HutchPlusPlus, lh.XTrace):
        found = lh.trace(gram(matrix_map(factors)), method(probes=20))
        truth = np.sum(np.asarray(factors, np.float64) ** 2, axis=(1, 2))
        assert np.all(np.abs(found.value - truth) < 5 * np.asarray(found.standard_error))
        assert found.value.shape == (3,)


@pytest.mark.refuses
@pytest.mark.once
@pytest.mark.parametrize(
    ("method", "least", "by"),
    [(lh.Hutchinson, 2, ""), (lh.XTrace, 4, " by XTrace"), (lh.HutchPlusPlus, 6, r" by Hutch\+\+")],
)
def test_methods_are_values_and_refuse_too_few_probes(method, least, by):
    assert method() == method(probes=32) == method(32)
    assert len({method(least), method(least), method(least + 1)}) == 2
    assert str(method(least)) == f"{method.__name__}(probes={least})"
    with pytest.raises(ValueError, match=f"`probes` must be at least {least} for an error bar{by}, got {least - 1}"):
        method(probes=least - 1)
    with pytest.raises(ValueError, match=f"`probes` must be a whole number of at least {least}, got 8.5"):
        method(probes=8.5)
    under_jit = jax.jit(lambda method, matrix: lh.trace(operator_of(matrix), method).value, static_argnums=0)
    np.testing.assert_allclose(under_jit(method(probes=D), jnp.eye(D)), D, rtol=1e-6)


@pytest.mark.refuses
@pytest.mark.once
def test_figures_say_which_methods_they_take():
    operator = operator_of(jnp.eye(D))
    of_traces = "`lh.Hutchinson(probes=32)`, `lh.HutchPlusPlus(probes=32)`, `lh.XTrace(probes=32)`, `lh.Structured()`"
    of_moments = "`lh.Hutchinson(probes=32)`, `lh.Structured()`"
    for figure, taken, wrong, got in (
        (lh.trace, of_traces, "xtrace", "'xtrace'"),
        (lh.trace, of_traces, lh.XTrace, "the class `XTrace` itself"),
        (lh.trace, of_traces, lh.Lanczos(), "a `Lanczos`"),
        (lh.frobenius_norm, of_moments, "structured", "'structured'"),
        (lh.range_mean, of_moments, lh.XTrace(), "a `XTrace`"),
        (lh.diagonal, "`lh.Hutchinson(probes=32)`", lh.Structured(), "a `Structured`"),
    ):
        with pytest.raises(TypeError) as raised:
            figure(operator, wrong)
        assert str(raised.value) == f"`method` must be {taken} or None, got {got}."
    for figure in (lh.range_mean, lh.frobenius_norm):
        with pytest.raises(ValueError, match="`probes` must be at least 3 for an error bar, got 2"):
            figure(operator, lh.Hutchinson(probes=2))
    with pytest.raises(ValueError, match=r"`Structured\(blocks=...\)` .* leave `blocks` out"):
        lh.trace(operator, lh.Structured(blocks=lh.GolubKahan()))
    with pytest.raises(TypeError, match=r"`method` must be a method, as `lh.Lanczos\(\)`, or None, got a `XTrace`"):
        lh.spectrum(operator, lh.XTrace())
