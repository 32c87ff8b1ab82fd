"""Many networks: one program for each shape, one dataset, and nothing that is done is lost."""

from localhessian.analysis.sweeps._sweep import sweep as sweep
