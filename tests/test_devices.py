"""Many devices and other devices: each in a process of its own, because JAX chooses its devices once."""

import os
import subprocess
import sys

import jax
from sources import ROOT

TIMEOUT = 300
FLAGS = "--xla_force_host_platform_device_count=8"


def test_a_mesh_of_eight_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64))}
    command = [sys.executable, "-m", "pytest", "tests/on_devices.py", "-q", "-p", "no:cacheprovider"]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
