"""Figures of many networks: each function takes and returns an `ax`."""

from localhessian.analysis.plot._sweep import sweep as sweep
