"""Back-matching over a stream of batches: what sums over samples, and the batches again for whoever asks."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect_here
from localhessian._brief import named, wrapped
from localhessian._mesh import is_traced
from localhessian._tree import abstracted, is_concrete, raw_bytes, to_device
from localhessian._types import Context, Loss, Params
from localhessian.network._backmatching import BackMatching
from localhessian.network._chain import Chain
from localhessian.network._context import given_of
from localhessian.network._leaves import check_samples
from localhessian.network._per_sample import Flags, have_leading, owned, sample_indices, take
from localhessian.network._side import Place
from localhessian.network._stream import Batch, Stream
from localhessian.network._validate import run_chain

Match = Callable[..., BackMatching]
"""`back_match`, with its checks or without."""


@dataclasses.dataclass(frozen=True, eq=False)
class StreamMatching:
    """Back-matching over an `lh.Stream`, at (W^k, z^k); from `lh.back_match`.

    As a `lh.BackMatching`, but that activations and residuals are made anew, batch by batch, whenever they are needed.
    """

    chain: Chain
    params: dict[str, Params]
    stream: Stream
    loss: Loss
    context: Context
    """Of all batches that have none of their own, as it was given."""
    first: Any
    """The `lh.BackMatching` of the first batch, which stays in memory."""
    samples: int
    batches: int
    """Parts in memory one after the other."""
    coupled: dict[str, bool]
    """Whether the block (of the last block: or the loss) couples the samples of a batch."""
    gradients: dict[str, Params]
    """dJ/dW_b, of the mean over all samples."""
    objective: float
    """J, the mean of the losses of all samples."""
    data: str
    """A digest of all x, y and contexts."""
    _flags: dict[Any, tuple[Flags, Flags]] = dataclasses.field(default_factory=dict, repr=False)
    """Which leaves of context and y belong to samples, by shapes."""

    def __repr__(self) -> str:
        """Its blocks, and how many samples."""
        blocks = f"{len(self.chain.names)} blocks: {named(self.chain.names)}"
        return wrapped(f"StreamMatching({blocks}; {self.samples} samples in {self.batches} batches)")

    def place(self, block: str) -> Place:
        """Where a block is taken in the first batch."""
        return cast(Place, self.first.place(block))

    def parts(self) -> Iterator[Batch]:
        """The batches, cut as the stream says; contexts as they were given."""
        for batch in self.stream:
            given = self.context if batch.context is None else batch.context
            yield from self._cut(Batch(batch.x, batch.y, given))

    def matchings(self, depth: int, match: Match | None = None) -> Iterator[BackMatching]:
        """Of each batch: activations up to z_depth alone, and nothing of the way back; with `match`, everything.

        Yields:
            One after the other.

        Raises:
            ValueError: The stream does not give as many samples as it gave at first.
        """
        total = 0
        for x, y, given in self.parts():
            total += check_samples("x", x)
            if match is not None:
                yield match(self.chain, self.params, x, y, self.loss, given)
            else:
                yield self._forward(x, y, given, depth)
        if total != self.samples:
            raise ValueError(
                f"`batches` gave {total} samples, and {self.samples} the first time: every pass must give the same "
                "(a function that returns one and the same iterator gives it once)."
            )

    def of_samples(self, samples: Any, match: Match) -> BackMatching:
        """The back-matching of some samples, taken out of their batches; indices count through the stream.

        Cost: one pass through the stream, without a product.
        """
        index = np.asarray(sample_indices(samples, self.samples)[0])
        found: dict[int, Batch] = {}
        flags: tuple[Flags, Flags] | None = None
        start = 0
        for x, y, given in self.parts():
            count = check_samples("x", x)
            mine = sorted(set(index.tolist()) & set(range(start, start + count)))
            if mine:
                of_context, of_y = self._owned(x, y, given)
                flags = (of_context, of_y) if flags is None or count > 1 else flags
                for i in mine:
                    at = np.asarray([i - start])
                    found[i] = Batch(take(x, at), take(y, at, of_y), take(given, at, of_context))
            start += count
        chosen, (of_context, of_y) = [found[i] for i in index.tolist()], flags or ((), ())
        every = (True,) * len(jax.tree.leaves(chosen[0].x))
        x, y, given = (
            _joined(parts, own) for parts, own in zip(zip(*chosen, strict=True), (every, of_y, of_context), strict=True)
        )
        return match(self.chain, self.params, x, y, self.loss, given)

    def _forward(self, x: Any, y: Any, given: Context, depth: int) -> BackMatching:
        context = self.chain.context_for(x, given, self.params)
        blocks = len(self.chain)
        z = run_chain(self.chain, self.params, x, context, depth)
        activations = (*z, *(None,) * (blocks - depth))
        nothing = (None,) * (blocks + 1)
        coupled: dict[str, Any] = dict.fromkeys(self.chain.names, np.False_)
        return BackMatching(
            activations, nothing, {}, jnp.zeros(()), coupled, self.params, y, context, self.chain, self.loss
        )

    def _cut(self, batch: Batch) -> Iterator[Batch]:
        n, most = check_samples("x", batch.x), self.stream.batch_size or math.inf
        if n <= most:
            yield batch
            return
        of_context, of_y = self._owned(*batch)
        for start in range(0, n, int(most)):
            part = np.arange(start, min(start + int(most), n))
            yield Batch(take(batch.x, part), take(batch.y, part, of_y), take(batch.context, part, of_context))

    def _owned(self, x: Any, y: Any, given: Context) -> tuple[Flags, Flags]:
        """Which leaves of context and y belong to samples; by the one rule, tried once for shapes."""
        n, key = check_samples("x", x), abstracted((x, y, given))
        if n == 1:
            return have_leading(given, 1), have_leading(y, 1)
        if key not in self._flags:
            count = min(self.stream.batch_size or n - 1, n - 1)
            of_context, of_y = owned(self.chain, self.loss, self.params, x, y, given, count)
            if of_context is None or of_y is None:
                what = "`context`" if of_context is None else "`y`"
                raise ValueError(
                    f"it cannot be told which arrays of {what} belong to the samples, so that a batch of {n} cannot be "
                    "cut: pass smaller batches (`lh.Stream`), each with its own `y` and context."
                )
            self._flags[key] = of_context, of_y
        return self._flags[key]


def match_stream(
    chain: Chain, params: dict[str, Params], stream: Stream, y: Any, loss: Loss, context: Context, match: Match
) -> StreamMatching:
    """One pass through the stream: every batch is checked, and what sums over samples is summed.

    Raises:
        TypeError: Called under a transformation.
        ValueError: `y` is given too; there is no batch; as from `match`.
    """
    if is_traced(params, context):
        raise TypeError(
            "a stream is gone through on the host, and no compiled program holds one: call it outside `jax.jit` and "
            "`jax.vmap`, or with one batch."
        )
    if y is not None:
        raise ValueError("`y` must be None where `x` is a stream, which holds both: pass `lh.Stream([(x, y), ...])`.")
    found: StreamMatching | None = None
    sums: Any = None
    digest, samples, batches = hashlib.sha256(), 0, 0
    coupled = dict.fromkeys(getattr(chain, "names", ()), False)
    empty = StreamMatching(chain, params, stream, loss, given_of(context), None, 0, 0, coupled, {}, math.nan, "")
    for x, labels, given in empty.parts():
        one = match(chain, params, x, labels, loss, given)
        found = found or dataclasses.replace(empty, params=one.params, loss=one.loss, first=one)
        samples, batches = samples + one.samples, batches + 1
        terms = jax.tree.map(
            lambda leaf, n=one.samples: n * np.asarray(leaf, np.float64), (one.objective, one.gradients)
        )
        sums = terms if sums is None else jax.tree.map(np.add, sums, terms)
        coupled = {name: was or bool(one.coupled[name]) for name, was in coupled.items()}
        for leaf in jax.tree.leaves((x, labels, given)):
            digest.update(raw_bytes(leaf))
    if found is None:
        raise ValueError("`batches` gave no batch: pass at least one (x, y).")
    objective, gradients = jax.tree.map(lambda leaf: leaf / samples, sums)
    typed = jax.tree.map(lambda mean, like: to_device(mean, like.dtype), gradients, found.first.gradients)
    return dataclasses.replace(
        found,
        samples=samples,
        batches=batches,
        coupled=coupled,
        gradients=typed,
        objective=float(objective),
        data=digest.hexdigest(),
    )


def cut_matching(matching: BackMatching, batch_size: int) -> StreamMatching:
    """A batch that is in memory, gone through in parts."""
    expect_here("batch_size", matching)
    if not is_concrete(matching):
        raise ValueError("`batch_size` goes through the batch on the host: call it outside `jax.jit` and `jax.vmap`.")
    x, given = matching.activations[0], given_of(matching.context)
    stream = Stream([(x, matching.y)], batch_size)
    coupled = {name: bool(flag) for name, flag in matching.coupled.items()}
    batches, objective = -(-matching.samples // batch_size), float(matching.objective)
    return StreamMatching(
        matching.chain,
        matching.params,
        stream,
        matching.loss,
        given,
        matching,
        matching.samples,
        batches,
        coupled,
        matching.gradients,
        objective,
        "",
    )


def _joined(parts: Sequence[Any], own: Flags) -> Any:
    """Trees whose leaves of samples stand behind each other; the others are those of the first."""
    treedef, leaves = jax.tree.structure(parts[0]), zip(*map(jax.tree.leaves, parts), strict=True)
    return jax.tree.unflatten(
        treedef,
        [jnp.concatenate(some) if of_samples else some[0] for some, of_samples in zip(leaves, own, strict=True)],
    )
