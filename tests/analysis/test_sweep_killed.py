"""Sweeps that are killed by SIGKILL: what is finished is not repeated, and the end is that of an undisturbed one."""

import random
import time

import numpy as np
import pytest
import sweeps_apart
import xarray

import localhessian as lh

pytestmark = pytest.mark.once


def finished(out):
    """The records that are there, and what tells that one was written again."""
    found = {}
    for path in out.with_name(f"{out.name}.cases").glob("*.npz"):
        seen = path.stat()
        found[path.name] = seen.st_ino, seen.st_mtime_ns
    return found


def killed_at_random(arguments, out, times):
    """How many of these processes got somewhere; then one that is left to end."""
    draw, advanced = random.Random(0), 0
    for attempt in range(times):
        before, process = finished(out), sweeps_apart.start(dict(arguments))
        if attempt % 3 == 2:  # anywhere: while it imports, compiles, runs
            time.sleep(draw.uniform(0, 3))
        else:  # while it runs
            while finished(out).keys() == before.keys() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.2))
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.communicate()
        now = finished(out)
        assert now.items() >= before.items()
        advanced += len(now) > len(before)
    before, ended = finished(out), sweeps_apart.start(dict(arguments))
    assert ended.wait() == 0, ended.communicate()[1]
    ended.communicate()
    assert finished(out).items() > before.items()
    return advanced


def check_killed(arguments, tmp_path, times):
    out = tmp_path / "killed.zarr"
    assert killed_at_random({**arguments, "out": str(out)}, out, times) >= 2 * times // 3
    left = {path.name for path in tmp_path.iterdir()} - {"log"}
    assert left == {out.name, f"{out.name}.cases"}
    found = xarray.open_dataset(out)
    assert found.finished.all()
    return found


def check_hosted(tmp_path, times):
    log = tmp_path / "log"
    found = check_killed(sweeps_apart.hosted("", log), tmp_path, times)
    ran = log.read_text().splitlines()
    # Only what was at hand when it was killed is run again.
    assert len(set(ran)) == 40 <= len(ran) <= 40 + times
    for a in range(5):
        for seed in range(8):
            expected = np.random.default_rng([a, seed]).standard_normal(4)
            np.testing.assert_array_equal(found.result[a, seed, 0], expected)


def check_compiled(tmp_path, times):
    arguments = sweeps_apart.compiled("", chunks=10 * times)  # so that something is left after the last kill
    found = check_killed(arguments, tmp_path, times)
    undisturbed = lh.sweep(**{**arguments, "out": None})
    assert len(np.unique(found.result.values[..., :8])) > 320  # of many bits, not of a fixed point
    assert found.drop_attrs().identical(undisturbed.drop_attrs())


def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    check_hosted(tmp_path, 1)


def test_a_killed_compiled_sweep_ends_in_the_same_bits(tmp_path):
    check_compiled(tmp_path, 1)


@pytest.mark.full
def test_a_sweep_killed_ten_times_goes_on_where_it_was(tmp_path):
    check_hosted(tmp_path, 10)


@pytest.mark.full
def test_a_compiled_sweep_killed_five_times_ends_in_the_same_bits(tmp_path):
    check_compiled(tmp_path, 5)
