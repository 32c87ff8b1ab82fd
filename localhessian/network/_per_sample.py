"""Which numbers belong to single samples, and how some of the samples are taken out: the one rule for all.

Of z every leaf has the samples on its leading axis. Of labels and of context a leaf *may* belong to the samples if its
leading axis has their number; a table of as many classes has it too. So a leaf is taken for one of the samples only
where the function that takes it says so: by its shapes, or because it answers for samples in another order what it
answered before, in that order.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._programs import at_once, compiled, full_precision
from localhessian._tree import array_of, is_concrete, to_device
from localhessian._types import Activations, Array, Context, Loss, Params
from localhessian.linalg import eps_of
from localhessian.network._chain import Chain
from localhessian.network._context import given_of

MOST = 4
"""Leaves in doubt of which every combination is tried; of more: all or none."""
MISFIT = (TypeError, ValueError, IndexError, KeyError, AssertionError)
"""How a user's function says that shapes do not fit."""

Selection = Callable[[str], bool]
Flags = tuple[bool, ...]
"""For each leaf of a tree, whether it belongs to the samples."""


def sample_indices(samples: Any, n: int) -> tuple[Array, bool]:
    """Indices of samples as a vector between 0 and n, and whether they were one index instead of several.

    Args:
        samples: An integer, a sequence of integers (negative ones count from the end), or a boolean mask of length n.
        n: How many samples there are.

    Raises:
        ValueError: Anything else, an empty selection, or an index out of range.
    """
    if not is_concrete(samples):
        return jnp.atleast_1d(samples) % n, jnp.ndim(samples) == 0
    try:
        asked = np.asarray(samples)
    except ValueError:  # ragged
        asked = None
    if asked is not None and asked.dtype == bool and asked.shape == (n,):
        asked = np.flatnonzero(asked)
    is_right = asked is not None and asked.ndim <= 1 and asked.dtype.kind in "iu" and asked.size > 0
    if asked is None or not is_right or np.any(asked >= n) or np.any(asked < -n):
        raise ValueError(
            f"`samples` must be an index, a sequence of indices or a boolean mask of length {n}, into the {n} samples "
            f"of the batch, got {samples!r}."
        )
    with at_once():  # they are known also while a program is traced
        return to_device(np.atleast_1d(asked) % n), asked.ndim == 0


def take(tree: Any, index: Any, belongs: Flags | None = None) -> Any:
    """The samples of `index` out of the leaves that belong to samples (None: all do); the others as they are."""
    leaves, treedef = jax.tree.flatten(tree)
    belongs = (True,) * len(leaves) if belongs is None else belongs
    taken = [_taken(leaf, index) if own else leaf for leaf, own in zip(leaves, belongs, strict=True)]
    return jax.tree.unflatten(treedef, taken)


def _taken(leaf: Any, index: Any) -> Array:
    """Of an array on the host, on the host: what is not meant is moved nowhere."""
    if isinstance(leaf, np.ndarray) or isinstance(index, slice):
        return array_of(leaf[index])
    return cast(Array, rows(leaf, index))


def have_leading(tree: Any, n: int) -> Flags:
    """For each leaf, whether its leading axis has n entries."""
    return tuple(jnp.shape(leaf)[:1] == (n,) for leaf in jax.tree.leaves(tree))


@compiled
def rows(tree: Any, index: Array) -> Any:
    """Some samples of every leaf, by one program."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def contexts_of(
    chain: Chain, x: Activations, context: Context, index: Array, n: int, params: dict[str, Params]
) -> Iterator[Context]:
    """What the context of the samples `index` may be, the likeliest first; to be proven by what the blocks answer."""
    few, given = rows(x, index), given_of(context)
    leading = have_leading(given, n)
    for belongs in dict.fromkeys((leading, (False,) * len(leading))):
        try:
            with full_precision():
                of_few = chain.context_for(few, take(given, index, belongs), params)
        except MISFIT:
            continue
        yield of_few


def first_samples(
    chain: Chain,
    loss: Loss,
    params: dict[str, Params],
    x: Activations,
    y: Any,
    context: Context,
    count: int,
    per_sample: Selection | None = None,
) -> tuple[Activations, Any, Context]:
    """x, y and context of the first `count` samples; of all where it cannot be said what belongs to them.

    `per_sample` tells of the path of a leaf (`"y['label']"`, `"context[0]"`) whether it belongs to the samples; None
    finds out (`belongs_to_samples`). The context comes as the blocks take it. Works under `jax.jit`: what belongs to
    samples is found from shapes and from made-up numbers.
    """
    n, given = jax.tree.leaves(x)[0].shape[0], given_of(context)
    if n <= count:
        return x, y, chain.context_for(x, context, params)
    of_context, of_y = owned(chain, loss, params, x, y, given, count, per_sample)
    if of_context is None or of_y is None:
        return x, y, chain.context_for(x, context, params)
    first = slice(0, count)
    few = jax.tree.map(lambda leaf: leaf[first], x)
    return few, take(y, first, of_y), chain.context_for(few, take(given, first, of_context), params)


def owned(
    chain: Chain,
    loss: Loss,
    params: dict[str, Params],
    x: Activations,
    y: Any,
    given: Context,
    count: int,
    per_sample: Selection | None = None,
) -> tuple[Flags | None, Flags | None]:
    """Which leaves of the context as it was given, and of y, belong to samples; None where it cannot be said.

    The arguments are those of `first_samples`; `count` is less than the number of samples.
    """
    n = jax.tree.leaves(x)[0].shape[0]
    if per_sample is not None:
        return _told(per_sample, "context", given, n), _told(per_sample, "y", y, n)
    forward = _Forward(chain)
    of_context = belongs_to_samples(forward, (params,), x, given, n, count)
    return of_context, belongs_to_samples(loss, (), jax.eval_shape(forward, params, x, given), y, n, count)


@dataclasses.dataclass(frozen=True)
class _Forward:
    chain: Chain

    def __call__(self, params: dict[str, Params], x: Activations, context: Context) -> Activations:
        return self.chain.forward(params, x, context)[-1]


def belongs_to_samples(
    function: Callable[..., Any], before: tuple[Any, ...], z: Any, extra: Any, n: int, count: int
) -> Flags | None:
    """Which leaves of `extra` belong to the n samples of z; None where that cannot be said. Only shapes are used.

    `function(*before, z, extra)`, hashable, gives arrays with the samples on the leading axis, and is tried with
    `count` of them. Candidates are the leaves whose leading axis has n entries.

    Where it takes all of them whole, those do not that it does not take cut: channels and widths that happen to be n.

    Cost: a trace for each candidate, and for each combination of those that are left; where shapes leave several, a
    forward pass or two with made-up numbers.
    """
    leading = have_leading(extra, n)
    takes = functools.cache(functools.partial(_takes, function, before, z, extra, count))
    if takes((False,) * len(leading)):
        alone = [tuple(j == i for j in range(len(leading))) for i in range(len(leading))]
        leading = tuple(has and takes(one) for has, one in zip(leading, alone, strict=True))
    possible = [some for some in _combinations(leading) if takes(some)]
    if len(possible) <= 1:
        return possible[0] if possible else None
    with at_once():
        return next((some for some in possible if _is_equivariant(function, before, z, extra, some, n)), None)


def _combinations(leading: Flags) -> Iterator[Flags]:
    """Of the leaves that are candidates all, then fewer."""
    places = [i for i, has in enumerate(leading) if has]
    sizes = range(len(places), -1, -1) if len(places) <= MOST else (len(places), 0)
    for size in sizes:
        for chosen in itertools.combinations(places, size):
            yield tuple(i in chosen for i in range(len(leading)))


def _takes(function: Callable[..., Any], before: Any, z: Any, extra: Any, count: int, belongs: Flags) -> bool:
    """Whether the function takes `count` samples, and gives as many, with those leaves cut."""
    few, some = _cut_shapes(z, None, count), _cut_shapes(extra, belongs, count)
    try:
        found = jax.eval_shape(function, *before, few, some)
    except MISFIT:
        return False
    return all(leaf.shape[:1] == (count,) for leaf in jax.tree.leaves(found))


def _cut_shapes(tree: Any, belongs: Flags | None, count: int) -> Any:
    """The shapes of a tree with the leading axis of the leaves of samples (None: of all) cut to `count`."""
    leaves, treedef = jax.tree.flatten(tree)
    flags = (True,) * len(leaves) if belongs is None else belongs
    shapes = [
        (count, *jnp.shape(leaf)[1:]) if own else jnp.shape(leaf) for leaf, own in zip(leaves, flags, strict=True)
    ]
    structs = [jax.ShapeDtypeStruct(s, jnp.result_type(leaf)) for s, leaf in zip(shapes, leaves, strict=True)]
    return jax.tree.unflatten(treedef, structs)


def _is_equivariant(function: Callable[..., Any], before: Any, z: Any, extra: Any, belongs: Flags, n: int) -> bool:
    """Whether samples in another order are answered alike, in that order; on made-up numbers."""
    before, z, extra = jax.tree.map(_made_up, (before, z, extra))
    turn = np.roll(np.arange(n), 1)
    of_samples: Callable[..., Any] = lambda tree: jax.tree.map(lambda leaf: leaf[turn], tree)
    straight = of_samples(answer(function, *before, z, extra))
    other = answer(function, *before, of_samples(z), take(extra, turn, belongs))
    return all(map(_alike, jax.tree.leaves(straight), jax.tree.leaves(other)))


@compiled(static_argnums=0)
def answer(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a block, a loss or a chain answers, by one program for each of them and shapes."""
    return function(*arguments)


def _alike(one: Any, two: Any) -> bool:
    one, two = np.asarray(one), np.asarray(two)
    if not jnp.issubdtype(one.dtype, jnp.floating):
        return bool(np.array_equal(one, two))
    apart = np.abs(one.astype(np.float64) - two.astype(np.float64))
    scale = np.abs(one.astype(np.float64)).max()
    return bool(apart.max() <= 100 * eps_of(one.dtype) * scale)


def _made_up(leaf: Any) -> Array:
    """Irregular numbers in the place of a leaf; integers 0 and 1, which are labels, tokens and indices of most."""
    shape, dtype, random = jnp.shape(leaf), jnp.result_type(leaf), np.random.default_rng(0)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), shape) if shape else jax.random.key(0)
    if jnp.issubdtype(dtype, jnp.floating):
        return to_device(random.uniform(0.1, 0.9, shape), dtype)
    return to_device(random.integers(0, 2, shape), dtype)


def _told(per_sample: Selection, name: str, tree: Any, n: int) -> Flags:
    """As the user says; a leaf of another leading axis cannot belong to the samples."""
    flags = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        where = name + jax.tree_util.keystr(path)
        flags.append(bool(per_sample(where)))
        if flags[-1] and jnp.shape(leaf)[:1] != (n,):
            raise ValueError(
                f"`per_sample` says that `{where}` belongs to the {n} samples, but its shape is {jnp.shape(leaf)}: "
                "answer False for it, or give it a leading axis of samples."
            )
    return tuple(flags)
