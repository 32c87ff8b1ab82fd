"""Blocks found in a program, and every eigenvalue of them."""

from localhessian.linalg.structure._dependence import Declined as Declined
from localhessian.linalg.structure._dependence import Unconfirmed as Unconfirmed
from localhessian.linalg.structure._in_program import singular_values as singular_values
from localhessian.linalg.structure._lapack import eigenvalues as eigenvalues
from localhessian.linalg.structure._mixing import Grid as Grid
from localhessian.linalg.structure._structured import Structure as Structure
from localhessian.linalg.structure._structured import Structured as Structured
from localhessian.linalg.structure._threads import cores_for as cores_for
from localhessian.linalg.structure._threads import in_parallel as in_parallel
from localhessian.linalg.structure._unit import roots as roots
