"""What work is predicted to take on this machine."""

import json
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import localhessian as lh
from localhessian import _clock as clock
from localhessian.linalg import _cost as cost
from localhessian.linalg import _rates as rates
from localhessian.linalg import gram, matrix_map
from localhessian.linalg.operators import Streamed

pytestmark = pytest.mark.once


@pytest.fixture
def anew():
    rates._rate.cache_clear()
    yield
    rates._rate.cache_clear()


@pytest.mark.parametrize(
    ("processor", "backend", "waits", "expected"),
    [
        (0.25, "cpu", False, 0.25),  # beside other work
        (4.0, "cpu", False, 2.0),  # on several cores
        (0.25, "cpu", True, 2.0),
        (0.25, "gpu", False, 2.0),  # the processor waits for a device
        (0.0, "cpu", False, 2.0),  # over before the system counts, by ticks of 16 ms on some
    ],
)
def test_what_takes_its_time_is_told_from_what_waits_for_its_turn(monkeypatch, processor, backend, waits, expected):
    at = {"clock": 7.0, "processor": 5.0}
    hands = SimpleNamespace(perf_counter=lambda: at["clock"], process_time=lambda: at["processor"])
    monkeypatch.setattr(clock, "time", hands)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)

    def work():
        at.update(clock=at["clock"] + 2.0, processor=at["processor"] + processor)
        return "done"

    assert clock.timed_call(work, waits=waits) == ("done", expected)


def test_batches_that_are_loaded_take_the_time_that_they_are_waited_for():
    part = gram(matrix_map(jnp.eye(3)))

    def parts():
        time.sleep(0.1)
        yield 1.0, part

    assert cost.of_product(Streamed(parts, 3, True, **part.form)) >= 0.1


def test_the_shortest_call_counts_and_long_ones_are_not_repeated(monkeypatch):
    def calls(taken):
        made: list[float] = []
        monkeypatch.setattr(clock, "timed_call", lambda work, waits: (work(), taken * len(made)))
        assert clock.least_seconds(lambda: made.append(0)) == 2 * taken
        return len(made)

    assert calls(0.01) == 1 + 3  # one before, to compile
    assert calls(1.0) == 1 + 1


def test_the_best_rates_of_a_machine_are_kept(monkeypatch, tmp_path, anew):
    monkeypatch.setenv("LOCALHESSIAN_CACHE", "1")
    monkeypatch.setattr(rates, "user_cache_dir", lambda name: str(tmp_path / name))
    path = tmp_path / "localhessian" / "rates.json"

    def measured(rate, kind="eigenvalues", size=16, programs=""):
        monkeypatch.setattr(rates, "least_seconds", lambda _: rates.KINDS[kind].operations(size) / rate)
        rates._rate.cache_clear()
        return rates._rate(kind, size, 1, programs)

    assert measured(2e6) == pytest.approx(2e6)
    assert measured(1e6) == pytest.approx(2e6)  # beside other work
    assert measured(4e6) == pytest.approx(4e6)
    assert measured(3e6, "gram") == pytest.approx(3e6)
    (kept,) = json.loads(path.read_text()).values()
    assert kept == pytest.approx({"eigenvalues 16 on 1": 4e6, "gram 16 on 1": 3e6})
    path.write_text(path.read_text().replace("{", '{"another": {"gram 16 on 1": 9.0}, ', 1))
    assert measured(5e6) == pytest.approx(5e6)
    assert json.loads(path.read_text())["another"] == {"gram 16 on 1": 9.0}
    # What takes long is measured once on a machine.
    assert measured(1e3, size=256) == pytest.approx(1e3)
    assert measured(1e9, size=256) == pytest.approx(1e3)
    assert measured(1e3, "decompositions", 2) == measured(1e9, "decompositions", 2) == pytest.approx(1e3)
    # Another device, another precision: another rate.
    assert measured(2e3, "decompositions", 2, ", jax 9 on gpu, float64") == pytest.approx(2e3)
    assert measured(1e9, "decompositions", 2) == pytest.approx(1e3)
    # Files by another hand, or of an earlier version.
    for damaged in (
        "[",
        "[1]",
        "7",
        path.read_text().replace("5000000.0", '"fast"'),
        f'{{"{rates._machine()}": [1, 2]}}',
    ):
        path.write_text(damaged)
        assert measured(1e6) == pytest.approx(1e6)


def test_rates_between_measured_orders(monkeypatch):
    known = {16: 1e8, 64: 4e8, 256: 1e9, 1024: 2e9, 2048: 1e9}
    monkeypatch.setattr(rates, "_rate", lambda kind, order, threads: known[order] * (1 if kind == "gram" else 2))
    for order, expected in ((1, 1e8), (16, 1e8), (32, 2e8), (64, 4e8), (1024, 2e9), (1448, 2e9 / 2**0.5), (4096, 1e9)):
        np.testing.assert_allclose(rates.gram_rate(order, one_core=True), expected, rtol=1e-3)
        np.testing.assert_allclose(rates.eigen_rate(order), 2 * expected, rtol=1e-3)


def test_rates_of_programs_are_those_of_the_precision(monkeypatch):
    """A process that computes in float64 does not take what one in float32 has measured."""
    asked = []
    monkeypatch.setattr(rates, "_rate", lambda kind, size, threads, programs: asked.append(programs) or 1.0)
    for wide in (False, True):
        with jax.enable_x64(wide):
            rates.of_step(10.0), rates.of_pieces(3)
    assert [name.rsplit(" ", 1)[1] for name in asked] == ["float32"] * 4 + ["float64"] * 4
    assert all(f"on {jax.default_backend()}," in name for name in asked)


def test_small_work_is_measured(monkeypatch, anew):
    """Of each kind: positive and finite."""
    monkeypatch.setenv("LOCALHESSIAN_CACHE", "0")
    monkeypatch.setattr(rates, "LONG", 2**10)
    found = [rates.gram_rate(16, one_core=True), rates.eigen_rate(16), rates.row_rate()]
    found += [rates.of_pieces(2), rates.of_pieces(100), rates.of_step(10.0), rates.of_step(1e6)]
    assert np.all(np.array(found) > 0)
    assert np.all(np.isfinite(found))
    assert found[3] <= found[4]
    assert found[5] <= found[6]


def test_a_structure_takes_its_arithmetic_its_rows_and_its_pieces(monkeypatch):
    monkeypatch.setattr(cost, "gram_rate", lambda order, one_core: 10.0 * order)
    monkeypatch.setattr(cost, "eigen_rate", lambda order: 20.0 * order)
    monkeypatch.setattr(cost, "row_rate", lambda: 5.0)
    monkeypatch.setattr(cost, "of_pieces", lambda pieces: 100.0 * pieces)
    for workers, pieces, share in ((1, 3, 1), (2, 3, 2), (4, 3, 3), (2, 1, 1), (1, 0, 1)):
        structure = SimpleNamespace(
            operations=lambda: (60.0, 80.0), order=2, pieces=pieces, workers=workers, bytes=lambda: 7.0
        )
        expected = (60 / 20 + 80 / 40 + (60 / 2 + 2 * pieces * 4) / 5) / share + 100 * pieces
        assert cost.of_structure(structure) == pytest.approx((expected, 7.0))


@pytest.mark.parametrize(("rows", "columns"), [(3, 40), (40, 3), (40, 30)])
def test_a_dense_matrix_takes_products_with_the_smaller_side(monkeypatch, rows, columns):
    """Those that form it: of a wide map those with its transpose, which may take many times as long."""
    made, products = [], cost.unit_products

    def seen(prepared, start, count):
        made.append((prepared.size, count))
        return products(prepared, start, count)

    monkeypatch.setattr(cost, "unit_products", seen)
    monkeypatch.setattr(cost, "least_seconds", lambda work: work() is None or 2.0)
    matrix = jnp.ones((rows, columns))
    operator = gram(lh.linear_map(lambda v: matrix @ v, None, columns, rows))
    order = min(rows, columns)
    count = min(order, cost.TOGETHER)
    difference = cost.of_dense(operator).seconds - cost.of_dense(operator, timed=False).seconds
    assert made == [(order, count)]
    assert difference == pytest.approx(2.0 * order / count)
