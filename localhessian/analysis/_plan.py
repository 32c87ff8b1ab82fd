"""What an analysis would take, before anything is decomposed."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from localhessian._brief import brief, by_value
from localhessian._grid import grid
from localhessian._optional import optional
from localhessian._progress import Progress, follow
from localhessian._types import Activations, Array, Context, Loss, Params
from localhessian.analysis._asked import chosen, expect_numbers, jobs_of, missing
from localhessian.analysis._route import Route, in_time, in_units, limits_of, route, within
from localhessian.analysis._sources import Sources, in_batches
from localhessian.analysis.rows import SYMBOLS
from localhessian.curvature import Part
from localhessian.linalg import Method, check_method
from localhessian.network import SIDES, Chain, Wrt, back_match_partly, check_chain


@by_value
@dataclasses.dataclass(frozen=True)
class PlannedRow:
    """One local Hessian: the way to it, and what that takes; compilation apart."""

    block: str
    wrt: Wrt
    part: Part
    size: int
    samples: int
    """Of an uncoupled H_z, those one by one; else 0."""
    route: str
    """Structured, Dense, top + quadrature, few products, the method asked for, or skipped."""
    reason: str
    seconds: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """A row for each local Hessian, in the order in which `lh.analyze` takes them; printed, a table."""

    rows: tuple[PlannedRow, ...]

    @property
    def seconds(self) -> float:
        """Of all rows that are not skipped, those that nothing is predicted of left out."""
        return math.fsum(row.seconds for row in self.rows if row.route != "skipped" and math.isfinite(row.seconds))

    @property
    def bytes(self) -> float:
        """Of the largest row that is not skipped: one is in memory at a time."""
        told = [row.bytes for row in self.rows if row.route != "skipped" and math.isfinite(row.bytes)]
        return max(told, default=0.0)

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, a line for each row."""
        return optional("pandas").DataFrame([dataclasses.asdict(row) for row in self.rows])

    def __str__(self) -> str:
        """The table and the sums."""
        columns = dict.fromkeys(("block", "side", "order", "route", "time", "memory", "why"), "left")
        columns |= dict.fromkeys(("order", "time", "memory"), "right")
        cells = [
            [
                *(row.block, SYMBOLS[row.wrt], f"{row.samples} x {row.size}" if row.samples else str(row.size)),
                *(row.route, in_time(row.seconds), in_units(row.bytes), row.reason),
            ]
            for row in self.rows
        ]
        skipped = sum(row.route == "skipped" for row in self.rows)
        total = f"about {in_time(self.seconds)} and at most {in_units(self.bytes)}, compilation apart"
        return "\n".join([*grid(columns, [("", cells)]), total + (f"; {skipped} skipped" if skipped else "")])

    __repr__ = brief


def plan(
    chain: Chain,
    params: dict[str, Params],
    x: Activations,
    y: Any,
    loss: Loss,
    context: Context = None,
    *,
    blocks: str | Iterable[str] | None = None,
    wrt: Wrt | Iterable[Wrt] = tuple(SIDES),
    part: Part | Iterable[Part] = "gauss_newton",
    samples: int | Sequence[int] | Array | None = None,
    samples_per_block: int = 16,
    method: Method | None = None,
    batch_size: int | None = None,
    max_seconds: float | None = None,
    max_bytes: float | None = None,
    progress: Progress | bool = False,
) -> Plan:
    """What `lh.analyze` with these arguments would do: the way to each local Hessian, seconds and bytes.

    Args:
        chain: The network; the arguments that follow are those of `lh.analyze`.
        params: The parameters of each block by its name.
        x: Inputs, samples on the leading axis, or an `lh.Stream`.
        y: What the loss compares with; None beside a stream.
        loss: Per-sample losses, shape `(n,)`.
        context: Handed to every block that takes one.
        blocks: A name or names of blocks.
        wrt: `"params"` for H_W, `"input"` for H_z, or both.
        part: Of the Hessian.
        samples: For an uncoupled H_z, which samples.
        samples_per_block: Without `samples`, how many.
        method: As in `lh.analyze`.
        batch_size: As in `lh.analyze`.
        max_seconds: Beyond it rows take the cheaper way, or are skipped.
        max_bytes: The same for each row; default what the machine has free.
        progress: True shows a bar; a function is called with (done, total, what).

    Returns:
        A plan to print; `.rows`, `.seconds`, `.bytes`, `.to_dataframe()`.

    Raises:
        ValueError: Bad input, as from `lh.analyze`.
        TypeError: Called under a transformation; `progress` is neither True, False nor a function.

    Cost: one `lh.back_match`, a search for structure in each block, and again with everything compiled where that is
    quick; nothing is decomposed. Where an iteration is planned, four products, where a dense matrix, up to 64. On a new
    machine seconds to measure its rates.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z @ w)), lh.Block("b", lambda w, z: z @ w)])
        >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 1))}
        >>> x, y = jnp.ones((5, 3)), jnp.zeros((5, 1))
        >>> planned = lh.plan(chain, params, x, y, lambda z, y: 0.5 * ((z - y) ** 2).sum(1))
        >>> sorted((row.block, row.route) for row in planned.rows if row.wrt == "params")
        [('a', 'Structured'), ('b', 'Dense')]
    """
    expect_numbers("plan", params, x, y, context, here={"plan": True})
    check_chain(chain, params)
    check_method(method)
    limits, jobs = limits_of(max_seconds, max_bytes), jobs_of(chain, blocks, wrt, part)
    matching = back_match_partly(chain, params, *in_batches(x, y, batch_size), loss, context)
    sources = Sources(matching, chosen(samples, samples_per_block, matching.samples))
    sources.check(jobs)
    routes = []
    with follow(progress, "Hessian") as show:
        for i, job in enumerate(jobs):
            show(i, len(jobs), " / ".join(job))
            if not (missing(matching, job[0], SIDES[job[1]], asked=blocks is not None) or sources.refused(job)):
                of, alone = sources.of(job)
                routes.append(route(of, job, alone, method, limits.bytes, known=sources.routes))
        show(len(jobs), len(jobs), "done")
    return Plan(tuple(_row(each) for each in within(routes, limits)))


def _row(found: Route) -> PlannedRow:
    block, wrt, part = found.job
    samples = found.operator.batch or 0
    return PlannedRow(
        block,
        wrt,
        part,
        found.operator.size,
        samples,
        found.words,
        found.reason,
        found.cost.seconds + found.searched,
        found.cost.bytes,
    )
