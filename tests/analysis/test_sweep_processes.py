"""Sweeps over processes: workers that die, two on one path."""

import concurrent.futures as cf
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import sweep_cases
import sweeps_apart

import localhessian as lh
from localhessian.analysis.sweeps import _hosted

pytestmark = pytest.mark.once

HERE = Path(sweep_cases.__file__).parent


def pool(workers=2):
    return cf.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


@pytest.mark.full
def test_a_pool_of_processes_gives_what_one_process_gives():
    axes = {"a": range(3), "b": [1.5, 2.0]}
    with pool() as executor:
        found = lh.sweep(sweep_cases.product, axes, compiled=False, executor=executor)
    alone = lh.sweep(sweep_cases.product, axes, compiled=False)
    assert found.drop_attrs().identical(alone.drop_attrs())


def test_a_killed_worker_costs_its_case_only():
    with pool(1) as executor, pytest.warns(UserWarning, match="1 of 4 cases failed"):
        found = lh.sweep(sweep_cases.deadly, {"a": range(4)}, compiled=False, executor=executor)
    np.testing.assert_array_equal(found.result, [0, 1, np.nan, 3])
    assert "its process ended abruptly" in found.error.values[2]


def test_what_cannot_be_sent_to_a_process_is_told():
    with pool(1) as executor, pytest.warns(UserWarning, match="1 of 1 cases failed"):
        found = lh.sweep(lambda a: a, {"a": [1]}, compiled=False, executor=executor)
    assert "pickle" in found.error.values[0].lower()
    assert found.error.values[0].startswith(
        "it cannot be sent to another process: make the case a function at the top of a module"
    )


def test_threads_are_an_executor_too():
    with cf.ThreadPoolExecutor(2) as executor:
        found = lh.sweep(sweep_cases.product, {"a": range(40), "b": [2.0]}, compiled=False, executor=executor)
    np.testing.assert_array_equal(found["product"][:, 0], 2.0 * np.arange(40))


class Job:
    """What submitit gives for a task: asked whether it is done, no future."""

    def __init__(self, future):
        self.done, self.result, self.cancel = future.done, future.result, future.cancel


class Submitter:
    def __init__(self, executor):
        self.submit = lambda *task: Job(executor.submit(*task))


def test_jobs_that_are_no_futures_are_asked(monkeypatch):
    monkeypatch.setattr(_hosted, "ASKED", 0.001)
    with cf.ThreadPoolExecutor(2) as executor, pytest.warns(UserWarning, match="1 of 3 cases failed"):
        found = lh.sweep(sweep_cases.failing, {"a": range(1, 4)}, compiled=False, executor=Submitter(executor))
    np.testing.assert_array_equal(found.result, [1, np.nan, 3])


def test_two_processes_on_one_path_are_told(tmp_path):
    process = sweeps_apart.start(sweeps_apart.hosted(tmp_path / "s.zarr", tmp_path / "log"))
    while not (tmp_path / "log").exists() and process.poll() is None:
        time.sleep(0.01)
    axes = {"a": range(5), "seed": range(8), "log": [str(tmp_path / "log")]}
    with pytest.raises(ValueError, match=r"another process works on `.*s.zarr.cases`"):
        lh.sweep(sweep_cases.slow, axes, compiled=False, out=tmp_path / "s.zarr")
    process.kill()
    process.communicate()


def test_a_damaged_record_is_made_again(tmp_path):
    out = tmp_path / "s.zarr"
    axes = {"a": range(3), "b": [1.5]}
    whole = lh.sweep(sweep_cases.product, axes, compiled=False, out=out)
    record = sorted((tmp_path / "s.zarr.cases").glob("*.npz"))[1]
    record.write_bytes(record.read_bytes()[:100])
    assert lh.sweep(sweep_cases.product, axes, compiled=False, out=out).drop_attrs().identical(whole.drop_attrs())


@pytest.mark.full
def test_a_cluster_of_dask(tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.upload_file(str(HERE / "sweep_cases.py"))
        found = lh.sweep(
            sweep_cases.product, {"a": range(3), "b": [1.5]}, compiled=False, executor=client.get_executor()
        )
    np.testing.assert_array_equal(found["product"][:, 0], [0, 1.5, 3.0])
