"""Cases that other processes can import."""

import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
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


def iterated(scale, width):
    """An iteration that forgets nothing: whatever is done in another way ends in other bits."""
    turn = jnp.sin(jnp.arange(1.0, 1 + width * width)).reshape(width, width)
    return jax.lax.fori_loop(0, 20000, lambda _, v: jnp.sin(scale * turn @ v) + v / 2, jnp.ones(width))
