"""Many devices and other devices: in processes of their own, because JAX chooses its devices once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import two_processes

import localhessian as lh
from localhessian.linalg.krylov import runs_whole

HERE = Path(__file__).parent
TIMEOUT = 300


def environment(devices):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags}


@pytest.mark.once
def test_a_mesh_of_eight_devices_and_programs_for_others():
    names = ["on_devices"] if jax.config.jax_enable_x64 else ["on_devices", "on_accelerators"]
    command = [sys.executable, "-m", "pytest", *(HERE / f"{name}.py" for name in names), "-q", "-p", "no:cacheprovider"]
    how = {"cwd": HERE.parent, "env": environment(8), "timeout": TIMEOUT}
    found = subprocess.run(command, check=False, capture_output=True, text=True, **how)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]


@pytest.mark.once
@pytest.mark.parametrize(("backend", "is_whole"), [("cpu", False), ("gpu", True), ("tpu", True)])
def test_accelerators_run_iterations_as_one_program(backend, is_whole, monkeypatch):
    operator = lh.symmetric_operator(lambda v: 2 * v, 3)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert runs_whole(operator) is is_whole


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory):
    """What each of two processes with two devices found, of which each has half of the batch."""
    folder, port = tmp_path_factory.mktemp("processes"), free_port()
    files = [folder / f"{rank}.json" for rank in range(two_processes.PROCESSES)]
    start = lambda *given: [sys.executable, two_processes.__file__, *map(str, given)]
    running = [
        subprocess.Popen(start(rank, port, file), env=environment(2), stderr=subprocess.PIPE)
        for rank, file in enumerate(files)
    ]
    try:
        said = [process.communicate(timeout=TIMEOUT)[1].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.once
def test_two_processes_find_what_one_does(of_processes, tol):
    alone = two_processes.figures(two_processes.case())
    for found in of_processes:
        for name in ("objective", "trace", "eigenvalues"):
            scale = np.max(np.abs(alone[name]))
            np.testing.assert_allclose(found[name], alone[name], rtol=0, atol=10 * tol.eigenvalue * scale)
        np.testing.assert_allclose(found["rows"], alone["rows"], rtol=1e3 * tol.eigenvalue)
        assert [found["coupled"], found["status"]] == [alone["coupled"], alone["status"]]
    one, other = of_processes
    assert one["fingerprint"] == other["fingerprint"]


@pytest.mark.once
def test_what_needs_all_numbers_says_so(of_processes):
    sentences = of_processes[0]["sentences"]
    for name in ("plan", "explain", "check_identities", "max_seconds", "batches", "batch_size", "Stream"):
        assert sentences[name].startswith(f"`{name}` looks at numbers on the host, and only other processes have some")
        assert "process_allgather" in sentences[name]
    assert sentences["not finite"].startswith("`x` is not finite: remove NaN")
