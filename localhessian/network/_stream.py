"""Data that does not fit in memory: batches that can be gone through again and again."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect_count, expect_flag, expect_function, expect_here, short
from localhessian._brief import wrapped
from localhessian._tree import is_concrete
from localhessian._types import Activations, Context

_WANTED = "a list of batches (x, y), an iterable of them that begins anew each time, or a function that returns one"


class Batch(NamedTuple):
    """Some samples."""

    x: Activations
    y: Any
    context: Context = None
    """As it was given."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Data in batches, in place of `x` in `lh.back_match`, `lh.plan`, `lh.measure` and `lh.analyze` (`y` is None).

    H_W of all samples is the mean of those of the batches, weighted by their numbers of samples: every product goes
    through the batches again, and one is in memory at a time. A batch of another size (a ragged last one) compiles
    once more.

    Args:
        batches: A list of `(x, y)`, or of `(x, y, context)` where the context is the batch's own; an iterable that
            begins anew whenever it is iterated (a `grain` or PyTorch loader); or a function that returns an iterator
            (`lambda: dataset.as_numpy_iterator()` of `tf.data`). The same samples each time: no shuffling that changes
            which, no random augmentation.
        batch_size: Cut each batch into parts of at most so many samples, as small as memory demands.
        per_batch: Batch normalization in training mode computes each batch with its own statistics, and there is no
            H_W of all samples at once, but for all of them in one batch. True takes the mean of the batches' own.

    Raises:
        TypeError: `batches` is an iterator that can be gone through only once, or nothing of the above.
        ValueError: There is no batch; `batch_size` is no number of samples.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z @ w)), lh.Block("b", lambda w, z: z @ w)])
        >>> params = {"a": jnp.eye(2), "b": jnp.ones((2, 1))}
        >>> x, y = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]]), jnp.zeros((3, 1))
        >>> data = lh.Stream([(x[:2], y[:2]), (x[2:], y[2:])])
        >>> matching = lh.back_match(chain, params, data, None, lambda z, y: 0.5 * ((z - y) ** 2).sum(1))
        >>> print(lh.local_hessian(matching, "b").to_dense().round(2))
        [[0.52 0.25]
         [0.25 0.5 ]]
    """

    batches: Any
    batch_size: int | None = None
    per_batch: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be gone through twice."""
        if self.batch_size is not None:
            expect_count("batch_size", self.batch_size, 1)
        expect_flag("per_batch", self.per_batch)
        batches = self.batches
        if isinstance(batches, list | tuple):
            if not len(batches):
                raise ValueError("`batches` is empty: pass at least one batch (x, y).")
            for batch in batches:
                _checked(batch)
        elif isinstance(batches, Iterator):
            raise TypeError(
                f"`batches` is a {type(batches).__name__}, which can be gone through only once, and every product goes "
                "through the data again: pass a list, or a function that makes the iterator anew (`lambda: loader()`)."
            )
        elif isinstance(batches, str | bytes | Mapping | np.ndarray | jax.Array):
            raise TypeError(f"`batches` must be {_WANTED}, got {short(batches)}.")
        elif isinstance(batches, type) or not isinstance(batches, Iterable):
            expect_function("batches", batches, _WANTED, takes=0)

    def __iter__(self) -> Iterator[Batch]:
        """The batches as they come, from the first on."""
        source: Callable[[], Any] | Iterable[Any] = self.batches
        found = source if isinstance(source, Iterable) else source()
        if not isinstance(found, Iterable):
            raise TypeError(f"`batches()` must return an iterator over batches (x, y), got {short(found)}.")
        # With tensors of other libraries as arrays.
        return (jax.tree.map(_array, _checked(batch)) for batch in found)

    def __repr__(self) -> str:
        """How many batches, where that is known."""
        count = f"{len(self.batches)} batches" if hasattr(self.batches, "__len__") else "batches"
        cut = "" if self.batch_size is None else f" in parts of {self.batch_size}"
        return wrapped(f"Stream({count}{cut}{', each with its own statistics' if self.per_batch else ''})")


def expect_batch(function: str, x: Any) -> None:
    """Refuse a stream (TypeError)."""
    if isinstance(x, Stream):
        raise TypeError(
            f"`{function}` takes one batch, and no stream: pass its batches one by one (`for x, y, context in stream`)."
        )


def _checked(batch: Any) -> Batch:
    expect_here("Stream", batch)
    if not isinstance(batch, list | tuple) or len(batch) not in {2, 3} or not is_concrete(batch):
        raise TypeError(
            f"`batches` must hold (x, y) or (x, y, context) for each batch, in numbers, got {short(batch)}."
        )
    return Batch(*batch)


def _array(leaf: Any) -> Any:
    is_known = isinstance(leaf, jax.Array | np.ndarray | bool | int | float)
    return leaf if is_known or not hasattr(leaf, "__array__") else jnp.asarray(np.asarray(leaf))
