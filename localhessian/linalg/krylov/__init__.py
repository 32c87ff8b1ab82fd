"""Lanczos and Golub-Kahan: settings, the recurrence, restarts, one driver for both."""

from localhessian.linalg.krylov._arithmetic import HOST as HOST
from localhessian.linalg.krylov._arithmetic import TRACED as TRACED
from localhessian.linalg.krylov._arithmetic import Arithmetic as Arithmetic
from localhessian.linalg.krylov._drive import on_the_host as on_the_host
from localhessian.linalg.krylov._drive import runs_whole as runs_whole
from localhessian.linalg.krylov._golub_kahan import GolubKahan as GolubKahan
from localhessian.linalg.krylov._golub_kahan import left_half as left_half
from localhessian.linalg.krylov._golub_kahan import right_half as right_half
from localhessian.linalg.krylov._krylov import BASIS_BYTES as BASIS_BYTES
from localhessian.linalg.krylov._krylov import Krylov as Krylov
from localhessian.linalg.krylov._krylov import told_apart as told_apart
from localhessian.linalg.krylov._lanczos import Lanczos as Lanczos
from localhessian.linalg.krylov._lanczos import advance as advance
from localhessian.linalg.krylov._plan import Plan as Plan
from localhessian.linalg.krylov._recurrence import State as State
from localhessian.linalg.krylov._recurrence import begin as begin
from localhessian.linalg.krylov._recurrence import jacobi_of as jacobi_of
from localhessian.linalg.krylov._vectors import unit_rows as unit_rows
