"""Spectral densities against prescribed spectra: shares, error bars, moments, both ways to run, refusals."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax.tree_util import Partial

import localhessian as lh
from localhessian.analysis._survey import TOP
from localhessian.linalg import gram, matrix_map
from localhessian.linalg.krylov import HOST
from localhessian.linalg.stochastic._jacobi import of_factor, of_symmetric
from localhessian.linalg.stochastic._quadrature import bracket, bracket_within, even_rules, radau_rules

D = 60


def times(matrix, v):
    return jnp.matmul(matrix, v, precision="highest")


def orthogonal(rows, columns, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(rows, columns)))[0]


def symmetric(eigenvalues):
    basis = orthogonal(len(eigenvalues), len(eigenvalues))
    matrix = basis * np.asarray(eigenvalues, float) @ basis.T
    return lh.symmetric_operator(Partial(times, jnp.asarray((matrix + matrix.T) / 2)), len(eigenvalues))


def factored(eigenvalues, rows):
    """R^T R with these eigenvalues, R with that many rows."""
    size, sigma = len(eigenvalues), np.sqrt(np.sort(eigenvalues)[::-1])
    rank = min(rows, size)
    return gram(matrix_map(jnp.asarray((orthogonal(rows, rank) * sigma[:rank]) @ orthogonal(size, rank, 1).T)))


def cumulative(eigenvalues, edges):
    """The true shares at the edges, and where an edge is so near to an eigenvalue that rounding decides."""
    edges = np.asarray(edges, np.float64)[:, None]
    unsure = np.abs(edges - eigenvalues) < 1e-4 * np.abs(edges)
    return np.mean(eigenvalues <= edges, axis=1), np.any(unsure, axis=1)


SPECTRA = {
    "geometric": np.geomspace(1e-4, 1, D),
    "1/k": 1 / np.arange(1.0, D + 1),
    "clusters": np.r_[np.ones(30), np.full(29, 0.5), 3.0],
    "null space": np.r_[np.zeros(D // 2), np.geomspace(1e-2, 1, D // 2)],
    "identity": np.ones(D),
    "zero": np.zeros(D),
    "rank one": np.r_[np.zeros(D - 1), 2.0],
    "n = 1": np.array([3.0]),
}
KINDS = {
    "symmetric": symmetric,
    "tall": lambda values: factored(values, len(values) + 20),
    "wide": lambda values: factored(values, max(np.count_nonzero(values), 1)),
}


@pytest.mark.parametrize("axis", ["linear", "log"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPECTRA)
def test_prescribed_spectra_lie_within_the_error_bars(name, kind, axis):
    eigenvalues = SPECTRA[name]
    found = lh.spectral_density(KINDS[kind](eigenvalues), axis=axis, steps=24, bins=40, key=jax.random.key(1))
    assert int(found.status) == 0
    truth, unsure = cumulative(eigenvalues, found.edges)
    low, high = (np.asarray(bound, np.float64) for bound in found.cumulative.interval(4))
    assert np.all(unsure | ((low - 1e-5 <= truth) & (truth <= high + 1e-5)))
    for share, true in ((found.zero, np.mean(eigenvalues == 0)), (found.negative, 0.0)):
        low, high = share.interval(4)
        assert float(low) - 1e-5 <= true <= float(high) + 1e-5
    # Densities are shares over widths.
    edges = np.asarray(found.edges, np.float64)
    width = np.diff(np.log10(edges) if axis == "log" else edges)
    masses = np.diff(np.asarray(found.cumulative.value, np.float64))
    np.testing.assert_allclose(found.density.value * width, masses, rtol=1e-3, atol=1e-5)


def test_few_distinct_eigenvalues_leave_no_quadrature_error():
    """A start sees three of them: the recurrence ends, and only the weights are random."""
    eigenvalues = np.repeat([1.0, 2.0, 5.0], [20, 30, 10])
    found = lh.spectral_density(symmetric(eigenvalues), limits=(0.5, 6.5), bins=6, probes=64)
    np.testing.assert_allclose(found.cumulative.quadrature_error, 0, atol=1e-6)
    np.testing.assert_allclose(found.density.value, [1 / 3, 1 / 2, 0, 0, 1 / 6, 0], atol=0.05)
    np.testing.assert_allclose(found.cumulative.value, [0, 1 / 3, 5 / 6, 5 / 6, 5 / 6, 1, 1], atol=0.05)


def test_an_indefinite_spectrum_is_counted_on_both_sides():
    eigenvalues = np.r_[np.full(15, -1.0), np.zeros(15), np.linspace(0.5, 1, 30)]
    found = lh.spectral_density(symmetric(eigenvalues), axis="log", probes=32, steps=40)
    for share in (found.negative, found.zero):
        low, high = share.interval()
        assert float(low) <= 0.25 <= float(high)
        assert float(high - low) < 0.2
    assert np.isnan(found.quantile_condition_number(0.5).value)
    assert float(found.edges[0]) > 0.4
    np.testing.assert_allclose(found.cumulative.value[0], 0.5, atol=0.05)


@pytest.mark.once
def test_error_bars_cover_the_truth_over_many_keys():
    """Three standard errors and the quadrature error, in at least 95 of 100 trials at every edge: one program."""
    spectra = [SPECTRA[name] for name in ("geometric", "clusters", "null space")]
    left, right = orthogonal(D + 20, D), orthogonal(D, D, 1)
    factors = jnp.stack([jnp.asarray(left * np.sqrt(values) @ right.T) for values in spectra])
    settings = {"axis": "log", "limits": (3e-5, 4.0), "bins": 20, "probes": 8, "steps": 12}

    @jax.jit
    def run(factors):
        return jax.vmap(lambda key: lh.spectral_density(gram(matrix_map(factors)), key=key, **settings))(
            jax.random.split(jax.random.key(0), 100)
        )

    found = run(factors)
    low, high = (np.asarray(bound) for bound in found.cumulative.interval())
    zero = [np.asarray(bound) for bound in found.zero.interval()]
    for place, values in enumerate(spectra):
        truth, unsure = cumulative(values, found.edges[0, place])
        covered = (low[:, place] - 1e-5 <= truth) & (truth <= high[:, place] + 1e-5)
        assert covered.mean(axis=0)[~unsure].min() >= 0.95
        true = np.mean(values == 0)
        assert ((zero[0][:, place] - 1e-5 <= true) & (true <= zero[1][:, place] + 1e-5)).mean() >= 0.95


@pytest.mark.parametrize("recurrence", ["lanczos", "golub_kahan"])
def test_rules_have_the_moments_of_their_start(recurrence, tol):
    """Gauss-Radau rules of N steps integrate polynomials of degree 2N; the bounds hold the start's own distribution."""
    sigma = np.linspace(0.2, 1, 30)
    basis = orthogonal(30, 30)
    matrix = jnp.asarray(basis * sigma @ basis.T)
    if recurrence == "lanczos":
        operator = lh.symmetric_operator(Partial(times, matrix), 30)
        jacobi, _ = of_symmetric(operator, jax.random.key(0), 4, 8, HOST)
    else:
        jacobi, _ = of_factor(matrix_map(matrix), jax.random.key(0), 4, 4, HOST)
    even = recurrence == "golub_kahan"
    nodes, weights = even_rules(jacobi.off, np) if even else radau_rules(jacobi.diagonal, jacobi.off, np)
    moments = [np.sum(weights * nodes**power, axis=-1) for power in range(17)]
    # All rules of a start agree up to degree 16; of even ones the last half leave some of that moment to infinity.
    agreeing = nodes.shape[2] // (2 if even else 1)
    for power, moment in enumerate(moments):
        some = moment[:, :, : agreeing if power == 16 else None]
        np.testing.assert_allclose(some, np.broadcast_to(moment[:, :, :1], some.shape), atol=100 * tol.eigenvalue)
    assert np.all(moments[16] <= moments[16][:, :, :1] + 100 * tol.eigenvalue)
    x = np.linspace(0, 1.1, 50)[None]
    lower, upper = bracket_within(jacobi.off, x, np) if even else bracket(jacobi.diagonal, jacobi.off, x, np)
    assert np.all(lower <= upper + 1e-7)
    assert np.all(np.diff(lower, axis=-1) >= 0)
    assert np.all(np.diff(upper, axis=-1) >= 0)
    assert np.mean(upper - lower) < 0.35


def shares(off, x):
    """Of even measures the sharp bounds within [-x, x], (E,): those of the measure that has a node at x, one by one.

    Of a further row t^2 = x rho_{N+1}, or where that is negative a last coupling b^2 = x rho_N, with the ratios of
    monic polynomials rho_{i+1} = x - b_i^2 / rho_i.
    """
    low, high = np.zeros(len(x)), np.zeros(len(x))
    for k, point in enumerate(x):
        ratio = point
        for b in off[:-1]:
            ratio = point - b**2 / ratio
        further = point * (point - off[-1] ** 2 / ratio)
        last = (off[-1], further**0.5) if further >= 0 else ((point * ratio) ** 0.5, 0.0)
        couplings = np.r_[off[:-1], last]
        values, vectors = np.linalg.eigh(np.diag(couplings, 1) + np.diag(couplings, -1))
        at = np.isclose(np.abs(values), point, rtol=1e-6)
        low[k] = np.sum(vectors[0, (np.abs(values) < point) & ~at] ** 2)
        high[k] = np.sum(vectors[0, (np.abs(values) < point) | at] ** 2)
    return low, high


@pytest.mark.once
@pytest.mark.parametrize("name", ["geometric", "1/k", "null space"])
def test_even_bounds_hold_every_measure_of_the_moments_and_little_more(name):
    """Beside the extreme ones: nothing is cut off, next to 0 nothing is given away, elsewhere less than twice."""
    sigma = np.sqrt(SPECTRA[name])
    jacobi, _ = of_factor(matrix_map(jnp.diag(jnp.asarray(sigma))), jax.random.key(3), 1, 6, HOST)
    off = np.asarray(jacobi.off, np.float64)
    x = np.geomspace(5e-3, 1.05, 60)
    lower, upper = (bound[0, 0] for bound in bracket_within(off, x[None], np))
    low, high = shares(off[0, 0], x)
    assert np.all((lower <= low + 1e-6) & (high <= upper + 1e-6))
    np.testing.assert_allclose(upper[0], high[0], rtol=1e-4)
    assert np.mean(upper - lower) < 1.4 * np.mean(high - low)


@pytest.mark.once
def test_a_quantile_below_all_ritz_values_has_an_upper_end_where_bounds_tell():
    """Most of these eigenvalues lie below what four steps find; bounds between there and the cutoff hold some of it."""
    values = np.geomspace(1e-5, 1, 1000)
    found = lh.spectral_density(matrix_map(jnp.diag(jnp.sqrt(jnp.asarray(values)))), axis="log", probes=2, steps=8)
    tail = np.asarray(found.tail)
    assert np.all(np.diff(np.r_[found.cutoff, tail, found.edges[0]]) > 0)
    shares, (low, high) = np.mean(values[:, None] <= tail, axis=0), found.tail_cumulative.interval(4)
    assert np.all((low - 1e-5 <= shares) & (shares <= high + 1e-5))
    beyond, first = 0, float(found.largest) / float(found.edges[0])
    for q in np.linspace(0.3, 0.8, 26):
        kappa = found.quantile_condition_number(float(q))
        truth = 1 / np.quantile(values, q, method="inverted_cdf")
        assert float(kappa.lower) <= truth * (1 + 1e-4)
        assert truth <= float(kappa.upper) * (1 + 1e-4)
        beyond += 1.1 * first < float(kappa.upper) < np.inf
    assert beyond > 0
    assert lh.spectral_density(matrix_map(jnp.eye(3))).tail.shape == (0,)


def by_two_starts(operator, key):
    return lh.spectral_density(operator, axis="log", probes=2, steps=12, key=key)


def by_one_run(operator, key):
    """As `analyze` does, where nothing splits."""
    return lh.spectral_density(lh.spectrum(operator, TOP, key=key, throw=False), axis="log")


@pytest.mark.once
@pytest.mark.parametrize("way", networks.waiting((by_two_starts, by_one_run), (by_two_starts,)))
def test_intervals_of_quantile_condition_numbers_hold_over_many_keys(way):
    """In at least 57 of 60 trials; two-sided where so few starts and steps tell."""
    order, quantiles = 400, (0.05, 0.5, 0.95)
    flat = np.linspace(0.5, 2, order)
    spectra = [flat, np.r_[flat[10:], np.geomspace(10, 300, 10)], np.r_[flat[: order // 2] * 0, flat[order // 2 :]]]
    operator = gram(matrix_map(jnp.stack([jnp.diag(jnp.sqrt(jnp.asarray(values))) for values in spectra])))
    told = [
        [density.quantile_condition_number(q) for q in quantiles]
        for key in jax.random.split(jax.random.key(0), 60)
        for density in [way(operator, key)]
    ]
    found = jax.tree.map(lambda *parts: np.stack(parts), *told)
    for q, intervals in zip(quantiles, found, strict=True):
        for place, values in enumerate(spectra):
            truth = values.max() / np.quantile(values[values > 0], q, method="inverted_cdf")
            low, high = (np.asarray(end, np.float64)[:, place] for end in (intervals.lower, intervals.upper))
            assert np.mean((low <= truth * (1 + 1e-4)) & (truth <= high * (1 + 1e-4))) >= 0.95
            # The small end beside a wide range takes more steps, and so do zeros that are told from small values.
            if place == 0 or q > 0.9 or (place == 1 and q == 0.5):
                assert np.isfinite(high).all()


@pytest.mark.once
def test_compiled_whole_and_on_the_host_tell_the_same():
    """Other random numbers, the same truth: both intervals hold it, of every operator of a batch."""
    factors = jnp.stack([jnp.asarray(orthogonal(40, 30, seed) * np.linspace(0.1, 1, 30)) for seed in range(3)])
    truth = lh.spectral_density(lh.spectrum(gram(matrix_map(factors))), axis="log", limits=(1e-3, 1.5), bins=16)
    settings = {"axis": "log", "limits": (1e-3, 1.5), "bins": 16, "probes": 8, "steps": 16}
    on_host = lh.spectral_density(gram(matrix_map(factors)), **settings)
    compiled = jax.jit(lambda R: lh.spectral_density(gram(matrix_map(R)), **settings))(factors)
    assert truth.exact
    assert not on_host.exact
    for found in (on_host, compiled):
        assert found.density.value.shape == (3, 16)
        low, high = found.cumulative.interval(4)
        assert np.all((low - 1e-5 <= truth.cumulative.value) & (truth.cumulative.value <= high + 1e-5))
        assert int(found.matvecs) == 128


@pytest.mark.parametrize("count", [1, 3])
def test_the_density_of_one_run_is_in_a_program_what_it_is_on_the_host(count, dtype):
    """The host has float64; bounds at a point beyond all nodes keep half of the digits of a program."""
    factors = jnp.stack([jnp.asarray(orthogonal(90, 80, seed) * np.linspace(0.1, 1, 80)) for seed in range(count)])
    run = lh.spectrum(gram(matrix_map(factors if count > 1 else factors[0])), TOP, throw=False)
    assert not np.any(run.complete)
    on_host, in_program = by_its_spectrum(run), jax.jit(by_its_spectrum)(run)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(in_program.cumulative.value, on_host.cumulative.value, atol=100 * eps)
    for name in ("probe_error", "quadrature_error"):
        ours, truth = (getattr(found.cumulative, name) for found in (in_program, on_host))
        np.testing.assert_allclose(ours, truth, atol=eps**0.5)
    np.testing.assert_allclose(in_program.edges, on_host.edges, rtol=100 * eps)


def by_its_spectrum(run):
    return lh.spectral_density(run, axis="log", limits=(1e-3, 1.5), bins=8)


def test_density_of_a_complete_spectrum_counts_it():
    eigenvalues = np.r_[0.0, 0.0, 1.0, 1.0, 4.0, 9.0]
    spectrum = lh.spectrum(symmetric(eigenvalues))
    found = lh.spectral_density(spectrum, axis="log", limits=(0.2, 20.0), bins=2)
    np.testing.assert_allclose(found.cumulative.value, [2 / 6, 4 / 6, 1], rtol=1e-6)
    np.testing.assert_allclose(found.density.value, [2 / 6, 2 / 6], rtol=1e-5)
    assert float(found.zero.value) == pytest.approx(2 / 6)
    assert float(found.density.probe_error.max()) == float(found.density.quadrature_error.max()) == 0
    warm = lh.Lanczos(max_matvecs=8), jnp.ones((60, 1))
    for method, start in [warm, (lh.Lanczos(max_matvecs=8, block_size=2), None)]:
        with pytest.raises(ValueError, match=r"the spectrum is not complete.*pass the operator"):
            lh.spectral_density(lh.spectrum(symmetric(np.linspace(1, 2, 60)), method, start=start, throw=False))


@pytest.mark.parametrize("exact", [True, False])
def test_quantiles_and_their_condition_numbers(exact):
    eigenvalues = np.r_[np.zeros(20), np.linspace(0.1, 1, 40)]
    operator = KINDS["wide"](eigenvalues)
    spectrum = lh.spectrum(operator)
    found = lh.spectral_density(spectrum if exact else operator, axis="log", bins=200, steps=40, probes=32)
    for q in (0.1, 0.5, 0.9):
        truth = float(lh.quantile_condition_number(spectrum, q))
        kappa = found.quantile_condition_number(q)
        assert float(kappa.lower) * (1 - 1e-5) <= truth <= float(kappa.upper) * (1 + 1e-5)
        np.testing.assert_allclose(kappa.value, truth, rtol=0.05 if exact else 0.25)
    at = found.quantile(2 / 3)
    assert float(at.lower) <= np.quantile(eigenvalues, 2 / 3, method="inverted_cdf") <= float(at.upper)
    assert float(found.quantile(0.0).lower) == -np.inf


@pytest.mark.once
def test_a_factor_resolves_what_its_square_does_not():
    """In float32 a null space of R is told from sigma = 1e-4; by R^T R alone it is not."""
    sigma = np.r_[np.full(40, 1e-4), np.full(20, 1.0)]
    factor = matrix_map(jnp.asarray(orthogonal(80, 60) * sigma @ orthogonal(60, 60, 1).T))
    by_factor = lh.spectral_density(gram(factor), axis="log")
    plain = lh.symmetric_operator(lambda v: factor.rmv(factor.mv(v)), 60)
    by_square = lh.spectral_density(plain, axis="log")
    assert float(by_factor.zero.interval()[1]) < 1e-3
    assert float(by_square.zero.value) > 0.5


def test_broken_operators_are_refused():
    skew = jnp.asarray(np.triu(np.ones((20, 20))))
    with pytest.raises(lh.SpectrumError, match="not symmetric"):
        lh.spectral_density(lh.symmetric_operator(Partial(times, skew), 20))
    with pytest.raises(lh.SpectrumError, match="does not belong to the product"):
        lh.spectral_density(lh.linear_map(Partial(times, skew), Partial(times, skew), 20, 20))
    with pytest.raises(lh.SpectrumError, match="was not finite"):
        lh.spectral_density(lh.symmetric_operator(lambda v: v * jnp.nan, 20))
    silent = lh.spectral_density(lh.symmetric_operator(lambda v: v * jnp.nan, 20), throw=False)
    assert lh.Status(int(silent.status)) is lh.Status.NON_FINITE
    assert np.isnan(silent.density.value).all()


@pytest.mark.once
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"axis": "square"}, "`axis` must be 'linear' or 'log', got 'square'"),
        ({"bins": 0}, "`bins` must be at least 1, got 0"),
        ({"probes": 1}, "`probes` must be at least 2, got 1"),
        ({"limits": (2.0, 1.0)}, r"`limits` must ascend, got \(2.0, 1.0\)"),
        ({"axis": "log", "limits": (0.0, 1.0)}, "`limits` must be positive on the log axis"),
        ({"rtol": 2.0}, "`rtol` must lie between 0 and 1, got 2.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        lh.spectral_density(symmetric([1.0, 2.0]), **settings)


@pytest.mark.once
def test_a_quantile_is_a_share_and_limits_are_numbers():
    found = lh.spectral_density(lh.spectrum(symmetric([1.0, 2.0])))
    with pytest.raises(TypeError, match="`limits` must be two finite numbers"):
        lh.spectral_density(symmetric(np.arange(1, 9.0)), limits=(0, 10**400))
    with pytest.raises(ValueError, match=r"`q` must lie between 0 and 1, got 1.5"):
        found.quantile(1.5)


@pytest.mark.once
def test_new_numbers_do_not_recompile_a_density(count_compilations):
    one, two = networks.drawn(0, 2, 50, 40)
    lh.spectral_density(gram(matrix_map(one)))
    with count_compilations() as seen:
        lh.spectral_density(gram(matrix_map(two)))
    assert seen.names == []


@pytest.mark.parametrize("kind", ["product", "factor"])
def test_mean_and_a_bound_of_the_smallest_non_zero_eigenvalue(kind):
    # Null values and a wide range; of the bound only the side matters, of the mean its own error.
    values = np.concatenate([np.zeros(40), np.geomspace(1e-3, 1, 160)]).astype(jnp.result_type(float))
    roots = jnp.sqrt(values)
    factor = lh.linear_map(lambda v: roots * v, None, 200, 200)
    operator = factor if kind == "factor" else lh.symmetric_operator(lambda v: values * v, 200)
    for seed in range(8):
        found = lh.spectral_density(operator, axis="log", probes=2, steps=12, key=jax.random.key(seed))
        assert found.nonzero >= 1e-3 * (1 - 1e-4)
        assert found.nonzero <= 0.5
        assert abs(found.mean.value - values.mean()) <= 5 * found.mean.probe_error
        assert 0 < found.mean.probe_error < 0.5 * values.mean()
        # The deviation of v^T H^2 v for a random direction v, over two of them.
        deviation = np.sqrt(2 * (np.mean(values**4) - np.mean(values**2) ** 2) / (200 + 2) / 2)
        assert abs(found.mean_square.value - np.mean(values**2)) <= 4 * deviation
        assert found.mean_square.probe_error > 0
    whole = lh.spectral_density(lh.spectrum(operator), axis="log")
    np.testing.assert_allclose([whole.mean.value, whole.nonzero], [values.mean(), 1e-3], rtol=1e-4)
    np.testing.assert_allclose(whole.mean_square.value, np.mean(values**2), rtol=1e-4)


def test_rows_after_a_breakdown_are_no_eigenvalues():
    # The start's own quotient, 0.2, lies below every non-zero eigenvalue.
    values = jnp.where(jnp.arange(200) < 40, 1.0, 0.0)
    found = lh.spectral_density(lh.symmetric_operator(lambda v: values * v, 200), axis="log", probes=2, steps=12)
    np.testing.assert_allclose(found.nonzero, 1, rtol=1e-5)
