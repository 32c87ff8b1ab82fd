"""How our programs are compiled."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from localhessian._mesh import settled

F = TypeVar("F", bound=Callable[..., Any])
_OUTSIDE = core.get_opaque_trace_state()
"""Nothing is being traced while modules are imported."""
_WITHOUT_FUSED_SUMS: Any = {"xla_cpu_experimental_ynn_fusion_type": ""}
_PLAIN_LOOPS: Any = {"xla_cpu_use_fusion_emitters": False}
_SELDOM_UNROLLED: Any = {"xla_backend_optimization_level": 1}
"""The CPU's older way from fused operations to loops (jaxlib 0.10), and of the levels up to 3 (the default) that which
does not write out short loops, as over small images. Together they take half of the time to compile; runs take as long
from float32 on, but sums over leading axes, which `linalg.quickly` has as products (`benchmarks/loops.py`)."""
_UNOPTIMIZED: Any = {"xla_backend_optimization_level": 0}


@overload
def compiled(function: F, /, *, static_argnums: Any = (), once: bool = False) -> F: ...
@overload
def compiled(*, static_argnums: Any = (), once: bool = False) -> Callable[[F], F]: ...
def compiled(function: Any = None, /, *, static_argnums: Any = (), once: bool = False) -> Any:
    """`jax.jit`, in full precision, and without the fusion that makes jaxlib 0.10 compute wrong sums on the CPU.

    There `x - (w * x).sum(-1, keepdims=True)`, with a `w` that is broadcast over the leading axis of a large `x`, is
    off by 10 % and more: what layers of that form give, and what many products with one softmax or one normalization
    look like. Inside a program of somebody else's, JAX does not let us choose: there that program's options hold.

    Args:
        function: Of arrays.
        static_argnums: As `jax.jit` takes them.
        once: Whether it runs about once for each set of shapes, so that compiling it is what takes time: on the CPU XLA
            then leaves out what makes programs fast, which takes a quarter.
    """
    if function is None:
        return functools.partial(compiled, static_argnums=static_argnums, once=once)
    precise = full_precision()(function)
    plain = jax.jit(precise, static_argnums=static_argnums)

    @functools.cache
    def chosen(_: bool) -> Callable:
        """By the flag that options follow."""
        options = compiler_options() | (_known(_UNOPTIMIZED) if once else {})
        return jax.jit(precise, static_argnums=static_argnums, compiler_options=options) if options else plain

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if is_tracing():
            return plain(*args)
        return settled(chosen(_wants_no_optimizations())(*args))

    return run


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Where matrix products and convolutions are traced in the precision of their type, also on GPUs and TPUs.

    By default those round what they multiply to 10 or 7 bits, a thousand times coarser than float32: products are no
    longer linear, and the small end of a spectrum is noise. A `jax_default_matmul_precision` of the user's holds.
    """
    config: Any = jax.config
    if config.jax_default_matmul_precision is not None or not _multiplies_coarsely():
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


def _multiplies_coarsely() -> bool:
    return jax.default_backend() != "cpu"


def compiler_options() -> dict[str, Any]:
    """Those of every program of ours: without the fusion that is wrong on this CPU, and compiled soon."""
    level = {} if _wants_no_optimizations() else _SELDOM_UNROLLED
    return (_WITHOUT_FUSED_SUMS if sums_go_wrong() else {}) | (_known(_PLAIN_LOOPS | level) or _known(level))


def _wants_no_optimizations() -> bool:
    """Whether JAX is told to leave them out, which no level of ours should undo."""
    config: Any = jax.config
    return bool(config.read("jax_disable_most_optimizations"))


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Those options of the CPU, if that is the device and this JAX has them."""
    return options if options and jax.default_backend() == "cpu" and _is_known(tuple(options.items())) else {}


@functools.cache
def _is_known(options: tuple[tuple[str, Any], ...]) -> bool:
    """One tiny program."""
    try:
        jax.jit(lambda x: x + 1, compiler_options=dict(options))(np.float32(0))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def at_once() -> contextlib.AbstractContextManager:
    """Where numbers must be at hand also while another program is traced.

    `jax.ensure_compile_time_eval` reaches into every program that is traced within it: what depends on none of its
    arguments is computed step by step, by a program for each step. Outside of all tracing it is not needed.
    """
    return jax.ensure_compile_time_eval() if is_tracing() else contextlib.nullcontext()


def is_tracing() -> bool:
    """Whether a program is being traced here, whose values functions may close over."""
    return core.get_opaque_trace_state() != _OUTSIDE


def is_eager() -> bool:
    """Whether operations run one by one here, each a program of its own: also under `jax.grad` outside of `jax.jit`."""
    return not isinstance(jnp.zeros(()), jax.core.Tracer)


def compiled_if_eager(*, static_argnums: Any = ()) -> Callable[[F], F]:
    """One program where JAX outside of `jax.jit` has one for each operation, and compiles loops at every call.

    Args:
        static_argnums: As `jax.jit` takes them.
    """

    def decorate(function: F) -> F:
        whole = compiled(function, static_argnums=static_argnums)

        @functools.wraps(function)
        def run(*args: Any) -> Any:
            return (whole if is_eager() else function)(*args)

        return cast(F, run)

    return decorate


@functools.cache
def sums_go_wrong() -> bool:
    """Whether this JAX has that fault, on the device that is used, and can do without the fusion. One small program."""
    if jax.default_backend() != "cpu" or not _is_wrong():
        return False
    try:
        right = not _is_wrong(compiler_options=_WITHOUT_FUSED_SUMS)
    except jax.errors.JaxRuntimeError:
        right = False
    if not right:
        warnings.warn(
            f"JAX {jax.__version__} computes wrong sums on this CPU: x - (w * x).sum(-1, keepdims=True) "
            "is off. Take another version; until then do not rely on its numbers.",
            stacklevel=2,
        )
    return right


def _is_wrong(**options: Any) -> bool:
    """Whether it is off here."""
    x, w = (np.cos(np.arange(n, dtype=np.float32)).reshape(-1, 1024, 64) for n in (2**17, 2**16))
    found = jax.jit(lambda x, w: x - (w * x).sum(-1, keepdims=True), **options)(x, w)
    return bool(np.abs(np.asarray(found) - (x - (w * x).sum(-1, keepdims=True))).max() > 1e-2)
