"""Lanczos and Golub-Kahan: settings, the recurrence, restarts."""

from localhessian.linalg.krylov._golub_kahan import GolubKahan as GolubKahan
from localhessian.linalg.krylov._golub_kahan import left_half as left_half
from localhessian.linalg.krylov._golub_kahan import right_half as right_half
from localhessian.linalg.krylov._krylov import BASIS_BYTES as BASIS_BYTES
from localhessian.linalg.krylov._krylov import ROWS as ROWS
from localhessian.linalg.krylov._krylov import Krylov as Krylov
from localhessian.linalg.krylov._krylov import Plan as Plan
from localhessian.linalg.krylov._krylov import products as products
from localhessian.linalg.krylov._krylov import repeats as repeats
from localhessian.linalg.krylov._krylov import rows as rows
from localhessian.linalg.krylov._krylov import told_apart as told_apart
from localhessian.linalg.krylov._lanczos import Lanczos as Lanczos
from localhessian.linalg.krylov._lanczos import advance as advance
from localhessian.linalg.krylov._recurrence import State as State
from localhessian.linalg.krylov._recurrence import begin as begin
from localhessian.linalg.krylov._vectors import lengths as lengths
from localhessian.linalg.krylov._vectors import random_block as random_block
from localhessian.linalg.krylov._vectors import unbatched as unbatched
from localhessian.linalg.krylov._vectors import unit_rows as unit_rows
