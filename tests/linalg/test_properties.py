"""What holds for every operator, setting and start: nothing returned is false, and nothing stands twice."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import localhessian as lh
from localhessian.linalg import gram, matrix_map

SHAPES = ((48, 40), (24, 40), (40, 40))
KINDS = {
    "geometric": lambda n, random: np.geomspace(10 ** -random.uniform(0, 3), 1, n),
    "linear": lambda n, random: np.linspace(10 ** -random.uniform(0, 3), 1, n),
    "outlier": lambda n, random: np.append(np.linspace(1, 2, n - 1), 10 ** random.uniform(0, 3)),
    "small outlier": lambda n, random: np.append(np.linspace(1, 2, n - 1), 10 ** -random.uniform(0, 2)),
    "copies": lambda n, random: np.repeat(random.uniform(0.1, 1, n // 4), 4),
    "clusters": lambda n, random: np.repeat(random.uniform(0.1, 1, n // 4), 4) * (1 + 1e-6 * random.normal(size=n)),
    "null space": lambda n, random: np.append(np.geomspace(1e-2, 1, n // 2), np.zeros(n - n // 2)),
    "rank one": lambda n, random: np.append(1.0, np.zeros(n - 1)),
    "identity": lambda n, random: np.ones(n),
    "zero": lambda n, random: np.zeros(n),
}
STARTS = {
    "none": lambda right, random: None,
    "random": lambda right, random: random.normal(size=(len(right), 3)),
    "copies": lambda right, random: random.normal(size=(len(right), 1)) * [1.0, -1.0, 1.0],
    "zero": lambda right, random: np.zeros((len(right), 2)),
    "largest": lambda right, random: right[:, -3:],
}
METHODS = st.builds(
    lambda kind, **given: kind(**given),
    kind=st.sampled_from([lh.Lanczos, lh.GolubKahan]),
    which=st.sampled_from(["both", "largest", "smallest"]),
    k=st.integers(1, 4),
    rtol=st.sampled_from([1e-2, 1e-4, 1e-6]),
    max_matvecs=st.sampled_from([5, 20, 200]),
    basis_size=st.sampled_from([None, 4, 16]),
    block_size=st.integers(1, 3),
)


@settings(max_examples=60)
@given(
    method=METHODS,
    shape=st.sampled_from(SHAPES),
    kind=st.sampled_from(sorted(KINDS)),
    start=st.sampled_from(sorted(STARTS)),
    unit=st.sampled_from([1.0, 1e-8, 1e8]),
    seed=st.integers(0, 10**6),
)
def test_whatever_is_returned_is_true(method, shape, kind, start, unit, seed):
    random = np.random.default_rng(seed)
    sigma = unit * KINDS[kind](min(shape), random)
    left, right = (np.linalg.qr(random.normal(size=(n, n)))[0][:, : min(shape)] for n in shape)
    matrix = jnp.asarray((left * sigma) @ right.T)
    exact, directions = np.linalg.eigh(np.asarray(matrix, np.float64).T @ np.asarray(matrix, np.float64))
    vectors = STARTS[start](directions, random)
    operator = gram(matrix_map(matrix))
    begin = None if vectors is None else jnp.asarray(vectors, matrix.dtype)
    found = lh.spectrum(operator, method, key=jax.random.key(seed), vectors=2, start=begin)

    eps, has_factor = float(jnp.finfo(matrix.dtype).eps), found.singular_values is not None
    truth = np.sqrt(np.maximum(exact, 0)) if has_factor else exact
    there = np.asarray(found.multiplicities) > 0
    value, error = (
        np.asarray(part, np.float64)[there]
        for part in (
            (found.singular_values, found.singular_residual_norms)
            if has_factor
            else (found.eigenvalues, found.residual_norms)
        )
    )
    # The Gram matrix of `exact` has a rounding of its own: 1e-16 of lambda_max, 1e-8 of sigma_max.
    rounding = (40 * eps + (1e-7 if has_factor else 0)) * max(truth[-1], 1e-30)
    assert len(value)
    distance = np.abs(value[:, None] - truth[None])
    assert (distance.min(axis=1) <= error + rounding).all()
    copies = np.repeat(value, np.asarray(found.multiplicities)[there])
    seen = (np.abs(copies[:, None] - copies[None]) <= rounding).sum(axis=1)
    near = 3 * np.repeat(error, np.asarray(found.multiplicities)[there]) + 5 * rounding
    assert (seen <= (np.abs(copies[:, None] - truth[None]) <= near[:, None]).sum(axis=1)).all()
    if bool(found.complete):
        np.testing.assert_allclose(np.sort(copies), truth, atol=3 * rounding)
    assert bool(lh.audit(operator, found).agrees)
    rtol = 1e-4 if has_factor else 3e-2
    kappa = lh.condition_number(found, rtol=rtol)
    assert lh.Status(int(kappa.status)) is not lh.Status.INDEFINITE
    share = sigma / max(sigma.max(), 1e-30)
    if kind != "zero" and not ((share > rtol / 2) & (share < 2 * rtol)).any():
        ratio = share[share > rtol].min() ** -2.0
        assert not float(kappa.lower) > ratio * (1 + 1e-2)
        assert not float(kappa.upper) < ratio * (1 - 1e-2)
