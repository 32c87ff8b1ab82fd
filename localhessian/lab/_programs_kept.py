"""Compiled programs that the next process finds again."""

from pathlib import Path

import jax
from platformdirs import user_cache_dir

MAX_BYTES = 2**31
"""Of the folder; what was not used for the longest time goes first."""


def keep_programs() -> None:
    """Let JAX keep what it compiles in the user's folder for caches, unless it keeps it elsewhere already.

    By itself JAX keeps programs only that took a second to compile, of which an analysis has hardly any.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    folder = Path(user_cache_dir("localhessian")) / "programs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # nothing is lost but time
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
