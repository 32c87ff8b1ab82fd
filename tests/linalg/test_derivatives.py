"""Eigenvalues and condition numbers are differentiated as v^T dH v, by every method and without its iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import localhessian as lh
from localhessian.linalg import gram

pytestmark = pytest.mark.relaxed

RANDOM = np.random.default_rng(0)
ROWS, SLOPES = RANDOM.standard_normal((12, 8)), np.arange(8) / 8
DENSE, LANCZOS, GOLUB_KAHAN = lh.Dense(), lh.Lanczos(k=2), lh.GolubKahan(k=2)


def forward(R, v):
    return R @ v


def product(R, v):
    return R.T @ (R @ v)


def operator(s, closed):
    """R^T R with R = ROWS (I + s diag(SLOPES)), its numbers held as data, or closed over."""
    R = jnp.asarray(ROWS) * (1 + s * jnp.asarray(SLOPES))
    both = [(lambda v, f=f: f(R, v)) if closed else Partial(f, R) for f in (product, forward)]
    return lh.symmetric_operator(both[0], 8, factor=lh.linear_map(both[1], None, 8, 12))


def named(value):
    """For `ids`; a flag is told as it is."""
    return None if isinstance(value, bool) else type(value).__name__


def truth():
    """Derivatives at s = 1 of the eigenvalues, ascending, and of kappa."""
    R = ROWS * (1 + SLOPES)
    values, vectors = np.linalg.eigh(R.T @ R)
    change = R.T @ (ROWS * SLOPES)
    slopes = np.diagonal(vectors.T @ (change + change.T) @ vectors)
    kappa = values[-1] / values[0]
    return slopes, kappa * (slopes[-1] / values[-1] - slopes[0] / values[0])


@pytest.mark.parametrize(
    ("method", "closed"),
    [
        (DENSE, False),
        (DENSE, True),
        (LANCZOS, True),
        (GOLUB_KAHAN, False),
        pytest.param(LANCZOS, False, marks=pytest.mark.full),
        pytest.param(GOLUB_KAHAN, True, marks=pytest.mark.full),
    ],
    ids=named,
)
def test_by_the_formula(method, closed, tol):
    """Of an operator whose numbers are data, and of one that closes over them."""

    def figures(s):
        found = lh.spectrum(operator(s, closed), method)
        return found.eigenvalues, lh.condition_number(found).value

    slopes, kappa = truth()
    ours, of_kappa = jax.jit(jax.jacrev(figures))(1.0)
    # Rounding of an eigenvalue is eps lambda_max, of its vector and so of its slope eps lambda_max over the gap.
    np.testing.assert_allclose(ours, slopes, rtol=100 * tol.identity)
    np.testing.assert_allclose(of_kappa, kappa, rtol=1000 * tol.identity)


@pytest.mark.parametrize(
    ("method", "with_factor"),
    [
        (DENSE, False),
        (DENSE, True),
        (LANCZOS, False),
        (GOLUB_KAHAN, True),
        pytest.param(LANCZOS, True, marks=pytest.mark.full),
    ],
    ids=named,
)
def test_zeros_of_a_low_rank_do_not_hide_the_derivative(method, with_factor, tol):
    """Of 12 eigenvalues four are zero: their roots, and bounds that are zero or infinite, have a slope of 0."""

    def figures(s):
        R = jnp.asarray(ROWS) * (1 + s * jnp.asarray(SLOPES))
        wide = lh.linear_map(lambda v: R.T @ v, lambda u: R @ u, 12, 8)
        H = gram(wide) if with_factor else lh.symmetric_operator(lambda v: R @ (R.T @ v), 12)
        kappa = lh.condition_number(lh.spectrum(H, method))
        return kappa.value, kappa.lower, kappa.upper, kappa.whole, kappa.gap

    slopes = jax.jit(jax.jacrev(figures))(1.0)
    # Products with H round at eps lambda_max, of which the smallest eigenvalue has few digits.
    np.testing.assert_allclose(slopes[0], truth()[1], rtol=3000 * tol.identity)
    assert np.isfinite(slopes).all()


@pytest.mark.once
def test_second_derivatives_of_a_dense_matrix(tol):
    """Against perturbation theory: v^T H'' v + 2 sum_i (v_i^T H' v)^2 / (lambda - lambda_i)."""
    R, moved = ROWS * (1 + SLOPES), ROWS * SLOPES
    values, vectors = np.linalg.eigh(R.T @ R)
    first = vectors.T @ (R.T @ moved + moved.T @ R) @ vectors[:, -1]
    second = 2 * np.sum((moved @ vectors[:, -1]) ** 2) + 2 * np.sum(first[:-1] ** 2 / (values[-1] - values[:-1]))
    largest = lambda s: lh.spectrum(operator(s, False), lh.Dense()).lambda_max
    np.testing.assert_allclose(jax.grad(jax.grad(largest))(1.0), second, rtol=1000 * tol.identity)


@pytest.mark.once
@pytest.mark.parametrize(
    ("method", "closed", "how"), [(lh.Lanczos, False, lambda slope: slope), (lh.GolubKahan, True, jax.jit)]
)
def test_a_run_that_has_not_converged_gives_the_slope_of_its_quotient(method, closed, how):
    """Of few steps, in a compiled loop of restarts: as near as the Ritz vector is to the eigenvector."""
    diagonal = jnp.linspace(0, 1, 200).at[-1].set(2.0)
    direction = jnp.cos(jnp.arange(200.0))

    def largest(s):
        root = jnp.sqrt(diagonal + 1 + s * direction)
        R = lh.linear_map((lambda v: root * v) if closed else Partial(lambda r, v: r * v, root), None, 200, 200)
        found = lh.spectrum(gram(R), method(which="largest", k=1, max_matvecs=40, basis_size=12))
        return found.lambda_max

    np.testing.assert_allclose(how(jax.grad(largest))(0.0), direction[-1], rtol=1e-3)


@pytest.mark.once
def test_of_a_network_by_its_parameters(tol):
    """What a regularizer takes: the derivative of log kappa_plus of H_z, against differences in float64."""
    chain = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z @ w)), lh.Block("b", lambda w, z: z @ w)])
    start, along = ({"a": RANDOM.standard_normal((4, 5)), "b": RANDOM.standard_normal((5, 3))} for _ in range(2))
    x, y = jnp.asarray(RANDOM.standard_normal((6, 4))), jnp.arange(6) % 3
    loss = lambda z, y: 0.5 * jnp.sum((z - jax.nn.one_hot(y, 3)) ** 2, axis=1)

    def log_kappa(s, method):
        params = {name: jnp.asarray(start[name]) + s * jnp.asarray(along[name]) for name in start}
        matching = lh.back_match(chain, params, x, y, loss)
        found = lh.spectrum(lh.local_hessian(matching, "a", "input", samples=0), method)
        return jnp.log(lh.condition_number(found).value)

    def by_hand(s):
        w = start["a"] + s * along["a"]
        z = np.asarray(x, np.float64)[0]
        values = np.linalg.svd((1 - np.tanh(z @ w) ** 2)[:, None] * w.T, compute_uv=False)
        return 2 * np.log(values[0] / values[-1])

    step = 1e-5  # of central differences in float64: their error is step^2
    wanted = (by_hand(step) - by_hand(-step)) / (2 * step)
    slope = jax.jit(jax.grad(log_kappa), static_argnums=1)(0.0, lh.GolubKahan(k=1))
    np.testing.assert_allclose(slope, wanted, rtol=1000 * tol.identity + 1e-8)


EAGER = {
    "Lanczos": lambda H: lh.spectrum(H, lh.Lanczos(which="largest", k=1)).lambda_max,
    "GolubKahan": lambda H: lh.spectrum(H, lh.GolubKahan(which="largest", k=1)).lambda_max,
    "XTrace": lambda H: lh.trace(H, lh.XTrace(probes=4)).value,
    "spectral_density": lambda H: lh.spectral_density(H, probes=2, steps=2, bins=2).mean.value,
}


def batch(figure):
    """Of a batch of one."""
    return lambda s: jax.vmap(figure)(jnp.full(1, s))[0]


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "how"),
    [("Lanczos", jax.grad), ("GolubKahan", batch), ("XTrace", jax.grad), ("spectral_density", batch)],
)
def test_without_jit_a_second_call_compiles_nothing(name, how, compiles_once):
    """Neither of a derivative nor of a batch: loops by themselves are compiled at every call, for seconds."""
    compiles_once(how(lambda s: EAGER[name](operator(s, False))))
