"""Checkpoints of a run by orbax: whole or not at all, and the same bits when read."""

import errno
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._optional import optional


class Checkpoint:
    """The latest state of one run, in a folder of its own.

    Args:
        folder: Made when first written.
        every: Steps between two writes.
    """

    def __init__(self, folder: Path, every: int) -> None:
        """Nothing is read or written yet."""
        self.folder, self.every = Path(folder).absolute(), every

    def save(self, step: int, tree: Any) -> None:
        """Write the state after `step` steps; the one before is removed when this one is complete."""
        # As numpy arrays: they are read on any device.
        leaves = _written(jax.tree.leaves(tree))
        with self._manager() as manager:
            manager.save(step, args=optional("orbax.checkpoint").args.StandardSave({"leaves": leaves}))

    def restore(self, template: Any) -> Any:
        """The latest complete state in the structure of `template`, or None if there is none.

        A damaged one is thrown away: the run begins anew.

        Raises:
            OSError: It cannot be read now (permissions, memory, a failing disk).
            ValueError: It does not fit the template: it belongs to another run.
        """
        if not self.folder.is_dir():
            return None
        leaves, treedef = jax.tree.flatten(template)
        restored = self._leaves()
        if restored is None:
            self.remove()
            return None
        expected = _written(leaves)
        if [(a.shape, a.dtype) for a in restored] != [(a.shape, a.dtype) for a in expected]:
            raise ValueError(f"`{self.folder}` is a checkpoint of another run: remove it, or choose another folder.")
        rest = iter(restored)
        return jax.tree.unflatten(treedef, [_like(next(rest), leaf) if np.size(leaf) else leaf for leaf in leaves])

    def remove(self) -> None:
        """Of a run that is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _leaves(self) -> list[np.ndarray] | None:
        """As they were written; None where they are damaged, in whatever way their readers notice that."""
        try:
            with self._manager() as manager:
                step = manager.latest_step()
                if step is None:
                    return None
                return manager.restore(step, args=optional("orbax.checkpoint").args.StandardRestore())["leaves"]
        except Exception as error:  # tensorstore, zarr, JSON, msgpack and files each have errors of their own
            if _passes(error):
                raise OSError(
                    f"the checkpoint in `{self.folder}` cannot be read now: mend that, or remove the folder, and the "
                    f"run begins anew. ({type(error).__name__}: {str(error)[:200]})"
                ) from error
            return None

    def _manager(self) -> Any:
        orbax = optional("orbax.checkpoint")
        options = orbax.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return orbax.CheckpointManager(self.folder, options=options)


_PASSING = {errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EROFS}
_WORDS_OF_PASSING = (
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "Permission denied",
    "Too many open files",
)


def _passes(error: Exception) -> bool:
    """Whether another try may succeed: a checkpoint is not thrown away for it."""
    number = error.errno if isinstance(error, OSError) else None
    return isinstance(error, MemoryError) or number in _PASSING or any(word in str(error) for word in _WORDS_OF_PASSING)


def _written(leaves: list[Any]) -> list[np.ndarray]:
    """The arrays of a file; orbax takes none without entries."""
    return [np.asarray(_numbers(leaf)) for leaf in leaves if np.size(leaf)]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(restored: np.ndarray, leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return np.array(restored)
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(restored), impl=jax.random.key_impl(leaf))
    return jnp.asarray(restored)
