"""Cases that other processes can import."""

import os
import signal
import time
from pathlib import Path

import jax
import numpy as np


def product(a, b):
    return {"product": np.float64(a * b), "powers": np.arange(3.0) ** a}


def random(a, key):
    return jax.random.normal(key, (2,)) + a


def failing(a):
    if a == 2:
        raise RuntimeError("two is not allowed\nsecond line")
    return float(a)


def deadly(a):
    """Kills the process that runs it."""
    if a == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(a)


def slow(a, seed, log):
    """Says that it ran; takes its time, so that a sweep can be killed within."""
    with open(Path(log), "a") as file:
        file.write(f"{a} {seed}\n")
    time.sleep(0.03)
    return np.random.default_rng([a, seed]).standard_normal(4)
