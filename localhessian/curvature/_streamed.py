"""Local Hessians over a stream of batches."""

from collections.abc import Callable, Iterator
from typing import Any

from localhessian.curvature._recipe import Part
from localhessian.linalg import Streamed, SymmetricOperator
from localhessian.network import SIDES, StreamMatching, Wrt, back_match_partly

OfBatch = Callable[..., SymmetricOperator]
"""`local_hessian` of one batch."""


def streamed_hessian(
    matching: StreamMatching, block: str, wrt: Wrt, part: Part, samples: Any, select: Any, of_batch: OfBatch
) -> SymmetricOperator:
    """As `local_hessian`, whose arguments they are: H_W of all samples; H_z of some, taken out of their batches.

    Raises:
        ValueError: A batch couples its samples; of H_z no samples are named.
    """
    why = coupling(matching, block, wrt, part)
    if not SIDES[wrt].per_sample:
        like = of_batch(matching.first, block, wrt, part, samples=samples, select=select)
        if why:
            raise ValueError(why)
        # The Gauss-Newton part is that of the block at its input; what is above it matters for the loss alone.
        depth = len(matching.chain) if block == matching.chain.names[-1] else matching.chain.index(block)
        match = None if part == "gauss_newton" else back_match_partly

        def parts() -> Iterator[tuple[float, SymmetricOperator]]:
            """H_W of each batch with its share of the samples."""
            for one in matching.matchings(depth, match):
                yield one.samples / matching.samples, of_batch(one, block, wrt, part, select=select)

        of_first = like.size if like.factor is None else like.factor.out_size
        rows = -(-of_first * matching.samples // matching.first.samples)
        return Streamed(parts, rows, like.factor is not None, **like.form)
    if samples is None:
        raise ValueError(
            f"H_z of all {matching.samples} samples of a stream is one small matrix for each: name some by `samples=`, "
            "which are taken out of their batches."
        )
    if why:
        raise ValueError(why)
    one = matching.of_samples(samples, back_match_partly)  # they make a batch of their own
    is_one = not hasattr(samples, "__len__") and getattr(samples, "ndim", 0) == 0
    return of_batch(one, block, wrt, part, samples=0 if is_one else range(one.samples), select=select)


def coupling(matching: StreamMatching, block: str, wrt: Wrt, part: Part) -> str:
    """Why the local Hessian depends on how the samples come in batches; nothing where it does not, or is to."""
    names = matching.chain.names
    below = names if part != "gauss_newton" else names[: matching.chain.index(block) + 1]
    coupled = [name for name in below if matching.coupled[name]]
    per_sample = SIDES[wrt].per_sample
    if not coupled or (matching.stream.per_batch and not per_sample) or matching.batches == 1:
        return ""
    what = f"{SIDES[wrt].symbol} of block `{block}`"
    remedy = (
        "take one batch" if per_sample else "pass `lh.Stream(..., per_batch=True)` for the mean over the batches' own"
    )
    return (
        f"block `{coupled[0]}` couples the samples of a batch (batch normalization in training mode, or the loss), so "
        f"that {what} is another in another batch: run the model in inference mode, or {remedy}."
    )
