"""Sums of operators that come in parts: batches of a data set, microbatches of a batch."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp

from localhessian._arguments import expect, number, short
from localhessian._tree import pytree
from localhessian._types import AnyArray, Array, Float
from localhessian.linalg.operators._operators import LinearMap, Operator, SymmetricOperator, check_vector


@pytree
class Stacked(LinearMap):
    """R = [s_1 R_1; s_2 R_2; ..], so that R^T R is the sum of s_i^2 R_i^T R_i; parts may have any number of rows."""

    parts: tuple[LinearMap, ...]
    scales: tuple[Any, ...]
    """Numbers, or arrays without axes."""

    @property
    def on_trust(self) -> bool:
        """Where one of the parts is."""
        return any(part.on_trust for part in self.parts)

    def product(self, v: Float[Array, "*s d"], /) -> Float[Array, "*s m"]:
        """R v, part after part."""
        return self._join([part.product(v) for part in self.parts])

    def transpose_product(self, u: Float[Array, "*s m"], /) -> Float[Array, "*s d"]:
        """R^T u."""
        parts = zip(self.parts, self._split(u), strict=True)
        return _total(self.scales, [part.transpose_product(rows) for part, rows in parts])

    def mv(self, v: Float[AnyArray, "*s d"], /) -> Float[Array, "*s m"]:
        """R v by the programs of the parts: equal shapes share one."""
        check_vector("v", v, self.size, self.batch)
        return self._join([part.mv(v) for part in self.parts])

    def rmv(self, u: Float[AnyArray, "*s m"], /) -> Float[Array, "*s d"]:
        """R^T u by the programs of the parts."""
        check_vector("u", u, self.out_size, self.batch)
        return _total(self.scales, [part.rmv(rows) for part, rows in zip(self.parts, self._split(u), strict=True)])

    def prepare(self) -> LinearMap:
        """With the set-up of every part done."""
        return dataclasses.replace(self, parts=tuple(part.prepare() for part in self.parts), label="")

    def _join(self, images: list[Array]) -> Array:
        return jnp.concatenate([scale * image for scale, image in zip(self.scales, images, strict=True)], axis=-1)

    def _split(self, u: AnyArray) -> list[Any]:
        ends = itertools.accumulate(part.out_size for part in self.parts)
        return [u[..., end - part.out_size : end] for part, end in zip(self.parts, ends, strict=True)]


@pytree
class Sum(SymmetricOperator):
    """w_1 H_1 + w_2 H_2 + .."""

    parts: tuple[SymmetricOperator, ...]
    weights: tuple[Any, ...]
    """Numbers, or arrays without axes."""

    @property
    def in_programs(self) -> bool:
        """Where all of the parts are."""
        return all(part.in_programs for part in self.parts)

    @property
    def on_trust(self) -> bool:
        """Where one of the parts is."""
        return any(part.on_trust for part in self.parts)

    @property
    def factor(self) -> LinearMap | None:
        """The factors on each other, where every part has one."""
        factors = [part.factor for part in self.parts if part.factor is not None]
        if len(factors) < len(self.parts):
            return None
        scales, rows = tuple(weight**0.5 for weight in self.weights), sum(factor.out_size for factor in factors)
        return Stacked(tuple(factors), scales, **factors[0].form | {"out_size": rows})

    def product(self, v: Float[Array, "*s d"], /) -> Float[Array, "*s d"]:
        """H v, part after part."""
        return _total(self.weights, [part.product(v) for part in self.parts])

    def mv(self, v: Float[AnyArray, "*s d"], /) -> Float[Array, "*s d"]:
        """H v by the programs of the parts: equal shapes share one."""
        check_vector("v", v, self.size, self.batch)
        return _total(self.weights, [part.mv(v) for part in self.parts])

    def to_dense(self) -> Float[Array, "*s d d"]:
        """The matrix, by products in one batched call; from those of the parts where one of them is a stream."""
        if self.in_programs:
            return super().to_dense()
        return _total(self.weights, [part.to_dense() for part in self.parts])

    def prepare(self) -> SymmetricOperator:
        """With the set-up of every part done."""
        return dataclasses.replace(self, parts=tuple(part.prepare() for part in self.parts), label="")


def _total(weights: tuple[Any, ...], images: list[Array]) -> Array:
    terms = [weight * image for weight, image in zip(weights, images, strict=True)]
    return cast(Array, sum(terms[1:], start=terms[0]))


def weighted_sum(operators: Sequence[Operator], weights: Sequence[float], /) -> SymmetricOperator:
    """w_1 H_1 + w_2 H_2 + .. of operators of one order; of linear maps A_i, of the A_i^T A_i.

    With `weights` the shares of samples it is H_W of all data from the H_W of its batches, also of a ragged last one:
    H_W is a mean over samples.

    Args:
        operators: Of one size, dtype and batch.
        weights: A non-negative number for each.

    Returns:
        Their sum. Where every operator has a factor R_i, its factor is [sqrt(w_1) R_1; sqrt(w_2) R_2; ..].

    Raises:
        TypeError: One of them is no operator, or a weight no number.
        ValueError: There is none; sizes, dtypes or batches differ; as many weights are not given, or one is negative.

    Cost: of a product, one of each part, by the part's own program.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> one, two = (lh.symmetric_operator(lambda v, s=s: s * v, 2) for s in (1.0, 4.0))
        >>> print(lh.weighted_sum([one, two], [0.75, 0.25]).mv(jnp.ones(2)))
        [1.75 1.75]
    """
    expect("operators", operators, (list, tuple), "a list of operators")
    expect("weights", weights, (list, tuple), "a list of numbers")
    if not operators or len(operators) != len(weights):
        counts = f"{len(operators)} and {len(weights)}"
        raise ValueError(f"`operators` must be one at least, and `weights` a number for each, got {counts}.")
    for i, operator in enumerate(operators):
        expect(f"operators[{i}]", operator, Operator, "an operator, as `lh.local_hessian` gives one")
        for what in ("size", "dtype", "batch"):
            ours, first = (getattr(one, what) for one in (operator, operators[0]))
            if ours != first:
                raise ValueError(f"`operators[{i}]` has {what} {ours}, and the first {first}: they cannot be summed.")
    parts = tuple(operator.symmetric for operator in operators)
    return Sum(parts, tuple(map(_weight, weights)), **parts[0].form)


def _weight(value: float) -> float:
    found = number(value)
    if found is None:
        raise TypeError(f"`weights` must be numbers, got {short(value)}.")
    if not 0 <= found < float("inf"):
        raise ValueError(f"`weights` must be finite and not negative, got {short(value)}.")
    return found
