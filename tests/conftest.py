"""Strict settings and the fixtures that every test may use."""

import contextlib
import dataclasses
import gc
import os
from collections.abc import Iterator

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl

# Compiling is what tests spend their time on, and XLA has quicker ways for the CPU, also in processes that tests start.
# With the variable at 0, as in `make full` and `make docs`, programs are those that users have.
QUICKLY = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0"
# Flags that a jaxlib does not know end the process, so only for the one they were tried with. Programs in one piece are
# those that users have, compiled sooner where every core has a worker.
if jax.__version_info__[:2] == (0, 10):
    flags = ["--xla_cpu_parallel_codegen_split_count=1", *["--xla_cpu_use_fusion_emitters=false"] * QUICKLY]
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))
QUICKLY = QUICKLY and jax.default_backend() == "cpu"
jax.config.update("jax_disable_most_optimizations", QUICKLY)

# The user's folder for caches is not for tests: what the machine can do is kept beside the programs of the run, where
# there is such a folder.
if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    os.environ["XDG_CACHE_HOME"] = os.path.dirname(os.environ["JAX_COMPILATION_CACHE_DIR"])
else:
    os.environ.setdefault("LOCALHESSIAN_CACHE", "0")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", False)
if jax.default_backend() != "cpu":
    # What results are compared with is plain JAX, where GPUs and TPUs round what they multiply.
    jax.config.update("jax_default_matmul_precision", "highest")

# Compilation makes the first example slow, so time limits would only be noise.
hypothesis.settings.register_profile("local", deadline=None, max_examples=10, print_blob=True)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("local"), derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """How far two numbers that are equal in exact arithmetic may differ, relative to the larger scale."""

    identity: float
    """The identities of the theory: both sides computed in the default dtype."""
    eigenvalue: float
    """An exact eigenvalue against float64, relative to lambda_max."""
    product: float
    """One matrix-vector product, relative to its norm."""


TOLERANCES = {
    "float32": Tolerances(identity=1e-5, eigenvalue=1e-5, product=2e-6),
    "float64": Tolerances(identity=1e-12, eigenvalue=1e-12, product=1e-14),
}


@dataclasses.dataclass
class Compilations:
    """The programs that XLA compiled while it was watching."""

    names: list[str] = dataclasses.field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def operations(self) -> set[str]:
        """Those that are a single operation of JAX."""
        names = {name.removeprefix("jit(").removesuffix(")") for name in self.names}
        return {name for name in names if hasattr(jax.lax, f"{name}_p") or hasattr(jnp, name.removeprefix("_"))}


@contextlib.contextmanager
def _count_compilations() -> Iterator[Compilations]:
    seen = Compilations()

    def listen(event: str, _: float, **details) -> None:
        # Recorded once for each program, whether XLA compiles it or the persistent cache has it.
        if event == "/jax/core/compile/backend_compile_duration":
            seen.names.append(str(details.get("fun_name", "unnamed")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def pytest_collection_finish() -> None:
    """By now everything is imported.

    It stays, and tracing makes much that is soon gone: the garbage collector need not look. Threads of BLAS that wait
    for each other in every worker take ten times as long over small matrices as one.
    """
    threadpoolctl.threadpool_limits(1, "blas")
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(autouse=True, scope="module")
def _no_program_outlives_its_module() -> Iterator[None]:
    """Each holds some of the 65,530 areas of memory that Linux gives a process, and time of the garbage collector."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _optimized(request) -> Iterator[None]:
    if not QUICKLY or request.node.get_closest_marker("optimized") is None:
        yield
        return
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def compiles_once():
    """`compiles_once(run)`: a second call of `run(1.0)` compiles nothing, and both are what `jax.jit` gives."""

    def check(run) -> None:
        first = run(1.0)
        with _count_compilations() as seen:
            again = run(1.0)
        assert seen.names == []
        assert again == first
        np.testing.assert_allclose(first, jax.jit(run)(1.0), rtol=1e-5)

    return check


@pytest.fixture
def count_compilations():
    """A context manager: `with count_compilations() as seen: ...`, then `seen.count` and `seen.names`."""
    return _count_compilations


@pytest.fixture
def dtype() -> jnp.dtype:
    """The default float dtype of this run: float32, or float64 with JAX_ENABLE_X64=1."""
    return jnp.result_type(float)


@pytest.fixture
def tol(dtype) -> Tolerances:
    """The tolerances of the default float dtype."""
    return TOLERANCES[dtype.name]


@pytest.fixture
def key() -> jax.Array:
    """A random key; split it for more."""
    return jax.random.key(0)


@pytest.fixture(autouse=True)
def _relaxed(request) -> Iterator[None]:
    if request.node.get_closest_marker("relaxed") is None:
        yield
        return
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
