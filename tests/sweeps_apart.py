"""Sweeps in processes of their own, that can be killed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import sweep_cases

import localhessian as lh


def hosted(out, log):
    """The arguments of a sweep of forty cases of 30 ms, each of which leaves a line in `log`."""
    axes = {"a": range(5), "seed": range(8), "log": [str(log)]}
    return {"case": sweep_cases.slow, "axes": axes, "compiled": False, "out": str(out)}


def compiled(out, chunks=10):
    """The arguments of a sweep of two programs with so many chunks of about 0.1 s each."""
    axes = {"width": [8, 9], "scale": np.linspace(0.5, 1.5, 32 * chunks).tolist()}
    return {"case": sweep_cases.iterated, "axes": axes, "static_axes": "width", "out": str(out)}


def start(arguments):
    """A process that runs this sweep."""
    case = arguments.pop("case")
    program = f"import sweep_cases, localhessian as lh\nlh.sweep(sweep_cases.{case.__name__}, **{arguments!r})\n"
    paths = os.pathsep.join([str(Path(sweep_cases.__file__).parent), str(Path(lh.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE)
