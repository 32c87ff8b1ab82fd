"""Long iterations tell how far they are, and lose nothing when they are interrupted."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import localhessian as lh

pytestmark = pytest.mark.once

DIAGONAL = np.geomspace(1e-2, 1, 300)
METHODS = {
    "Lanczos": lh.Lanczos(which="largest", k=2, rtol=1e-4),
    "Golub-Kahan": lh.GolubKahan(which="largest", k=2, rtol=1e-4),
}


@pytest.fixture(autouse=True)
def _interruptible():
    """Where the tests run in the background of a shell, the signal is ignored from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def times(diagonal, v):
    return diagonal * v


def operator(name, diagonal=DIAGONAL):
    if name == "Lanczos":
        return lh.symmetric_operator(Partial(times, jnp.asarray(diagonal)), len(diagonal))
    root = Partial(times, jnp.sqrt(jnp.asarray(diagonal)))
    return lh.linear_map(root, root, len(diagonal), len(diagonal))


@pytest.mark.parametrize("name", METHODS)
def test_progress_counts_the_products_of_the_budget(name):
    told = []
    found = lh.spectrum(operator(name), METHODS[name], progress=lambda *what: told.append(what))
    done, totals, _ = zip(*told, strict=True)
    assert list(done) == list(range(1, len(done) + 1))
    assert set(totals) == {200}
    assert int(found.matvecs) >= done[-1]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("after", [3, 25])
def test_an_interrupted_spectrum_is_kept_and_goes_on(name, after):
    """By the signal itself, before and after the first restart."""
    H, method = operator(name), METHODS[name]

    def interrupt(done, total, what):
        if done == after:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"interrupted after \d+ products; `.spectrum` holds") as stopped:
        lh.spectrum(H, method, vectors=2, progress=interrupt)
    assert isinstance(stopped.value, lh.SpectrumInterrupt)
    kept = stopped.value.spectrum
    assert lh.Status(int(kept.status)) is lh.Status.BUDGET_SPENT
    assert bool(lh.audit(H, kept).agrees)
    distance = np.abs(np.asarray(kept.eigenvalues)[:, None] - DIAGONAL).min(axis=1)
    assert (distance <= np.asarray(kept.residual_norms) + 1e-6).all()
    whole, rest = lh.spectrum(H, method), lh.spectrum(H, method, start=kept.vectors)
    assert bool(rest.converged)
    assert int(rest.matvecs) <= int(whole.matvecs)
    np.testing.assert_allclose(rest.eigenvalues, DIAGONAL[-2:], rtol=1e-3)


def test_before_the_first_product_there_is_nothing_to_keep():
    def interrupt(done, total, what):
        raise KeyboardInterrupt

    layer = jnp.asarray(np.random.default_rng(0).normal(size=(40, 6)))
    R = lh.linear_map(lambda w: (layer @ w.reshape(6, 4)).ravel(), None, 24, 160)
    with pytest.raises(KeyboardInterrupt) as stopped:
        lh.spectrum(R, lh.Structured(), progress=interrupt)
    assert not isinstance(stopped.value, lh.SpectrumInterrupt)


def test_ends_of_blocks_are_kept_as_those_of_the_whole():
    layer = jnp.asarray(np.random.default_rng(0).normal(size=(80, 60)))
    R = lh.linear_map(lambda w: (jnp.arange(1.0, 5)[None] * (layer @ w.reshape(60, 4))).ravel(), None, 240, 320)
    method = lh.Structured(blocks=lh.GolubKahan(which="largest", k=1, rtol=1e-6))

    def interrupt(done, total, what):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(lh.SpectrumInterrupt) as stopped:
        lh.spectrum(R, method, progress=interrupt)
    kept, whole = stopped.value.spectrum, lh.spectrum(R, method)
    assert kept.size == whole.size == 240
    assert float(kept.lambda_max) == pytest.approx(float(whole.lambda_max), rel=0.2)
    assert kept.method == whole.method


def test_a_bar_is_shown_and_closed(capsys):
    lh.spectrum(operator("Lanczos"), METHODS["Lanczos"], progress=True)
    shown = capsys.readouterr().err
    assert "/200" in shown
    assert shown.endswith("\n")


def test_a_traced_run_is_silent():
    told = []
    jax.jit(lambda d: lh.spectrum(lh.symmetric_operator(Partial(times, d), 8), lh.Lanczos(), progress=told.append))(
        jnp.arange(1.0, 9)
    )
    assert told == []
