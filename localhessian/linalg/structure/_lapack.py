"""Eigenvalues alone, by the two LAPACK routines that do the work, with the block size that suits one core.

`numpy.linalg.eigvalsh` reduces to tridiagonal form with blocks of 32 columns, which takes a fifth longer, and
`scipy.linalg.lapack` holds the interpreter's lock. The functions that SciPy offers to compiled code have neither limit.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import LowLevelCallable
from scipy.linalg import cython_lapack

from localhessian._blas import blas_threads

SMALL = 64
"""Below this order a stack is decomposed by one call of NumPy: what surrounds the routines counts more."""
_NUMBER, _SIZE, _TEXT = "__pyx_t_5scipy_6linalg_13cython_lapack_d *", "int *", "char *"
_KINDS: dict[str, Any] = {_NUMBER: ctypes.c_void_p, _SIZE: ctypes.POINTER(ctypes.c_int), _TEXT: ctypes.c_char_p}
_REDUCE = (_TEXT, _SIZE, _NUMBER, _SIZE, _NUMBER, _NUMBER, _NUMBER, _NUMBER, _SIZE, _SIZE)
_ITERATE = (_SIZE, _NUMBER, _NUMBER, _SIZE)


def eigenvalues(gram: np.ndarray) -> np.ndarray:
    """Of symmetric matrices (*, n, n) in float64, ascending, from their upper triangles; they may be overwritten.

    Raises:
        LinAlgError: an iteration did not converge.
    """
    n = gram.shape[-1]
    reduce, iterate = _routine("dsytrd", _REDUCE), _routine("dsterf", _ITERATE)
    if n < SMALL or reduce is None or iterate is None:
        return np.linalg.eigvalsh(gram, UPLO="U")
    # A reduction is n calls, each of which threads would wait at beside other work, all too short for that.
    with blas_threads(1):
        found = [_one(reduce, iterate, matrix) for matrix in gram.reshape(-1, n, n)] if gram.ndim > 2 else None
        return _one(reduce, iterate, gram) if found is None else np.reshape(found, gram.shape[:-1])


def _one(reduce: Callable[..., Any], iterate: Callable[..., Any], gram: np.ndarray) -> np.ndarray:
    n = len(gram)
    # The upper triangle by rows is the lower one by columns, which is how LAPACK reads.
    triangle = b"U" if gram.flags.f_contiguous else b"L"
    gram = gram if gram.flags.f_contiguous else np.ascontiguousarray(gram)
    width = min(max(n // 64, 8), 32)
    values, beside, tau, work = (np.empty(size) for size in (n, n - 1, n - 1, n * width))
    at = [array.ctypes.data for array in (gram, values, beside, tau, work)]
    order, length, failed = ctypes.c_int(n), ctypes.c_int(n * width), ctypes.c_int(0)
    reduce(triangle, order, at[0], order, *at[1:], length, failed)
    iterate(order, at[1], at[2], failed)
    if failed.value:
        raise np.linalg.LinAlgError("Eigenvalues did not converge")
    return values


@functools.cache
def _routine(name: str, kinds: tuple[str, ...]) -> Callable[..., Any] | None:
    """A function of SciPy's, which releases the lock; None where its signature is another (integers of 64 bits)."""
    offered = LowLevelCallable.from_cython(cython_lapack, name)
    signature = f"void ({', '.join(kinds)})"
    if offered.signature != signature:
        return None
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    address = pointer(("PyCapsule_GetPointer", ctypes.pythonapi))(offered.function, signature.encode())
    return ctypes.CFUNCTYPE(None, *(_KINDS[kind] for kind in kinds))(address)
