"""What the numbers of one or several reports show, computed from them: a few sentences, the verdict first.

What makes numbers worthless comes before anything else, and no sentence is better than a doubtful one: where a figure
is missing, nothing is said of it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from localhessian import _arguments
from localhessian.analysis._table import number
from localhessian.analysis.rows import INTERVALS, SYMBOLS, Analyzed, Key, Label, Labeled, Row, labeled
from localhessian.network import Wrt

MOST = 8
"""Findings; what is least says least."""
APART = 2.0
"""A factor below which condition numbers are told to hardly differ."""
SMALL_SHARE = 0.5
"""Of the space: kappa_plus of fewer directions is no good sign, however small."""
ON_MEAN = 0.5
"""Of the top eigenvector, along the mean of the inputs: above it, the mean is told to carry the top."""
ONE_CHANNEL = 0.8
"""Of the top eigenvector, in one channel: above it, that channel is told to carry the top."""
WEAK_GRADIENT = 0.5
"""Of the squared gradient, in the bottom eigenspaces: above it, a step sized for the top is told to miss it."""
LISTED = 4
"""Blocks that are named in a sentence."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A sentence, and the rows that it speaks of."""

    text: str
    rows: tuple[tuple[Label, Key], ...] = ()

    def __str__(self) -> str:
        """The sentence."""
        return self.text


class Findings(tuple[Finding, ...]):
    """Printed, a list; each entry knows its rows."""

    __slots__ = ()

    def __str__(self) -> str:
        """A line for each."""
        return "\n".join(f"- {finding}" for finding in self)

    def __repr__(self) -> str:
        """The verdict, and how many more there are."""
        return f"Findings({str(self[0])[:80]!r} and {len(self) - 1} more)" if self else "Findings()"


def findings(reports: Labeled[Analyzed]) -> Findings:
    """What the reports show, and what they do not.

    Args:
        reports: By the name of a network, or by (network, stage); `meta["accuracy"]` is told where there is one.

    Returns:
        The verdict; what is broken; medians by network and stage; how much of the space kappa_plus speaks of, on both
        sides; what carries the largest eigenvalues and what centering or scaling would do about it; where the gradient
        lies; every reservation that the rows carry. At most eight.
    """
    told = labeled(reports)
    rows = [(label, row) for label, report in told.items() for row in report.rows]
    if not any(row.has_figures for _, row in rows):
        return Findings([*_broken(rows), Finding("There is no spectrum to speak of.")])
    latest = {label.network: label for label in told}
    last_stage = [(label, row) for label, row in rows if latest[label.network] == label]
    found = [_verdict(told, last_stage), *_broken(rows), _medians(told)]
    found += [find(last_stage) for find in (_shares, _mean, _scaling, _channel, _gradient)]
    last = [_reservations(rows), _limits(told)]
    kept = [finding for finding in found if finding][: MOST - len(last)]
    return Findings([*kept, *last])


Rows = Sequence[tuple[Label, Row]]
_BROKEN: tuple[tuple[tuple[str, ...], str], ...] = (
    (("NON_FINITE", "OUT_OF_RANGE"), "left the range of its numbers (it has diverged, or has no derivative here)"),
    (
        ("FAILED", "NOT_SYMMETRIC", "NOT_DETERMINISTIC", "NOT_ADJOINT", "NOT_LINEAR", "NOT_CONFIRMED"),
        "could not be analyzed",
    ),
    (("ZERO",), "has no curvature at all (dead units, or samples without a loss)"),
    (("INDEFINITE",), "is indefinite, so that it has no kappa_plus"),
)
"""Statuses, and what is said of the blocks that have them."""


def _broken(rows: Rows) -> list[Finding]:
    """What makes the other numbers doubtful, or worthless."""
    parts, where = [], []
    for statuses, words in _BROKEN:
        some = [(label, row) for label, row in rows if row.status in statuses and not _is_as_expected(row)]
        if some:
            parts.append(f"{_named(some)} {words}")
            where += some
    return [_finding(f"First: {'; '.join(parts)}", where)] if parts else []


def _is_as_expected(row: Row) -> bool:
    """A full local Hessian, or a residual part, may be indefinite."""
    return row.status == "INDEFINITE" and row.part != "gauss_newton"


def _verdict(reports: Mapping[Label, Analyzed], rows: Rows) -> Finding | None:
    """Which network, or which block, the robust figure says is worst, where that can be said."""
    broken = [pair for pair in rows if any(pair[1].status in statuses for statuses, _ in _BROKEN)]
    broken = [(label, row) for label, row in broken if not _is_as_expected(row)]
    doubt = f" ({len(broken)} of {len(rows)} local Hessians have none, see below)" if broken else ""
    networks = dict.fromkeys(label.network for label in reports)
    told = _networks(reports) if len(networks) > 1 else _blocks(rows)
    return told if told is None else dataclasses.replace(told, text=told.text[:-1] + doubt + ".")


def _networks(reports: Mapping[Label, Analyzed]) -> Finding | None:
    """Networks compared by the robust figure; a good one on a small share of the space is not called the best."""
    last = {label.network: (label, report) for label, report in reports.items()}
    parts, where = [], []
    for wrt, symbol in SYMBOLS.items():
        sides = {name: [(label, row) for row in _side(report, wrt)] for name, (label, report) in last.items()}
        values = {name: _median(side, "kappa_q05") for name, side in sides.items()}
        values = {name: value for name, value in values.items() if np.isfinite(value)}
        bounds = [name for name in values if not all(np.isfinite(row.kappa_q05) for _, row in sides[name])]
        if len(values) < 2:
            continue
        if bounds:
            parts.append(f"in {symbol} nothing can be told: of blocks of {_listed(bounds)} only bounds are known")
            continue
        ranked = sorted(values, key=values.__getitem__)
        figures = ", ".join(f"{name} {number(values[name])}" for name in ranked)
        share = _share(sides[ranked[0]])
        where += [pair for side in sides.values() for pair in side]
        if values[ranked[-1]] < APART * values[ranked[0]]:
            parts.append(f"in {symbol} the networks hardly differ ({figures})")
        elif share < SMALL_SHARE:
            parts.append(
                f"in {symbol} {ranked[0]} has the smallest figure ({figures}), but on {_percent(share)} of the space "
                "only, so that it is not the best"
            )
        else:
            parts.append(f"in {symbol} {ranked[0]} is the best conditioned ({figures})")
    if not parts:
        return None
    return _finding(f"By the robust figure lambda_max/lambda_5%, median over the blocks, {'; '.join(parts)}", where)


def _blocks(rows: Rows) -> Finding | None:
    """Where one network's conditioning is worst."""
    parts, where = [], []
    for wrt, symbol in SYMBOLS.items():
        side = [pair for pair in _of(rows, wrt) if np.isfinite(_known(pair[1], "kappa_q05"))]
        if not side:
            continue
        worst, middle = max(side, key=lambda pair: _known(pair[1], "kappa_q05")), _median(side, "kappa_q05")
        value, is_exact = _known(worst[1], "kappa_q05"), all(np.isfinite(row.kappa_q05) for _, row in side)
        if len(side) > 1 and value >= APART * middle and is_exact:
            parts.append(
                f"{symbol} is worst conditioned in `{worst[1].block}`, lambda_max/lambda_5% = {number(value)}, "
                f"{number(value / middle, 2)} times the median block's"
            )
        elif is_exact:
            parts.append(f"lambda_max/lambda_5% of {symbol} is {number(middle)} in the median block, none stands out")
        else:
            parts.append(
                f"lambda_max/lambda_5% of {symbol} is at least {number(middle)} in the median block, and at least "
                f"{number(value)} in `{worst[1].block}`"
            )
        where.append(worst)
    return _finding("; ".join(parts), where) if parts else None


def _medians(reports: Mapping[Label, Analyzed]) -> Finding | None:
    sentences, where = [], []
    for wrt, symbol in SYMBOLS.items():
        networks: dict[str, list[str]] = {}
        for label, report in reports.items():
            side = [(label, row) for row in _side(report, wrt)]
            value = _median(side, "kappa_plus")
            if not np.isnan(value):
                least = "" if all(np.isfinite(row.kappa_plus) for _, row in side) else "at least "
                networks.setdefault(label.network, []).append(f"{least}{number(value)} {label.stage}".strip())
                where += side
        if networks:
            told = "; ".join(f"{name} {', '.join(values)}".strip() for name, values in networks.items())
            sentences.append(f"kappa_plus({symbol}): {told}")
    return _finding(f"Median over the blocks of {'. Of '.join(sentences)}", where) if sentences else None


def _shares(rows: Rows) -> Finding | None:
    """kappa_plus leaves zero directions out, so it must be read with the share that is left, on either side."""
    parts, where = [], []
    for wrt, symbol in SYMBOLS.items():
        whole = [(label, row) for label, row in _of(rows, wrt) if row.is_whole and row.rank > 0]  # H = 0 has no kappa
        low = [(label, row) for label, row in whole if row.rank / row.size < SMALL_SHARE]
        if low:
            least = min(low, key=lambda pair: pair[1].rank / pair[1].size)
            share = _percent(least[1].rank / least[1].size)
            parts.append(
                f"kappa_plus({symbol}) of {_named(low)} speaks of less than half of the space (of {share} in "
                f"{_block(*least)})"
            )
            where += low
    if not parts:
        return None
    return _finding(
        f"{'; '.join(parts)}: a small figure there means that the rest is lost or never moves, not that it is well "
        "conditioned",
        where,
    )


def _mean(rows: Rows) -> Finding | None:
    """The mean of a layer's input carries the top, and centering would take it away."""
    some = [
        (label, row)
        for label, row in _of(rows, "params")
        if row.top_on_mean >= ON_MEAN and row.kappa_inputs >= APART * row.kappa_centered
    ]
    if not some:
        return None
    label, most = max(some, key=lambda pair: pair[1].kappa_inputs / pair[1].kappa_centered)
    return _finding(
        f"The mean of the layer's input carries the largest eigenvalue of H_W of {_named(some)} "
        f"({_percent(most.top_on_mean)} of the top eigenvector in {_block(label, most)}): centering that input would "
        f"take the condition number of its second moments there from {number(most.kappa_inputs)} to "
        f"{number(most.kappa_centered)}",
        some,
    )


def _scaling(rows: Rows) -> Finding | None:
    """Inputs of different sizes."""
    some = [pair for pair in _of(rows, "params") if pair[1].kappa_inputs >= APART * pair[1].kappa_scaled]
    if not some:
        return None
    label, most = max(some, key=lambda pair: pair[1].kappa_inputs / pair[1].kappa_scaled)
    return _finding(
        f"Inputs of different sizes: scaling each to a root mean square of one would take the condition number of the "
        f"second moments of {_block(label, most)} from {number(most.kappa_inputs)} to {number(most.kappa_scaled)}"
        + (f", and help in {len(some) - 1} more" if len(some) > 1 else ""),
        some,
    )


def _channel(rows: Rows) -> Finding | None:
    """One channel, or class, stands out."""
    some = [pair for pair in _of(rows, "params") if pair[1].top_channel_share >= ONE_CHANNEL]
    if not some:
        return None
    words = [f"{row.top_channel} in {_block(label, row)}" for label, row in some]
    return _finding(
        "One output channel (of the last block: class) carries the top eigenvector of H_W, and no other eigenvalue is "
        f"half as large: {_listed(words)}",
        some,
    )


def _gradient(rows: Rows) -> Finding | None:
    """Where the gradient lies."""
    known = [pair for pair in _of(rows, "params") if np.isfinite(pair[1].gradient_top)]
    weak = [pair for pair in known if pair[1].gradient_bottom >= WEAK_GRADIENT]
    if weak:
        label, most = max(weak, key=lambda pair: pair[1].gradient_bottom)
        return _finding(
            f"{_percent(most.gradient_bottom)} of the squared gradient of {_block(label, most)} lies where the "
            f"curvature is below a thousandth of lambda_max ({len(weak)} of {len(known)} blocks have more than half "
            "there): a step sized for the top hardly moves along it",
            weak,
        )
    if not known:
        return None
    share = _median(known, "gradient_top")
    return _finding(
        f"In the median block {_percent(share)} of the squared gradient lies where the curvature of H_W is above a "
        "tenth of lambda_max",
        known,
    )


def _reservations(rows: Rows) -> Finding:
    some = [pair for pair in rows if pair[1].has_figures]
    conditions: dict[str, Callable[[Row], bool]] = {
        f"of {len(some)} kappa_plus (marked ?) hang on where the rank rule cuts": lambda r: (
            r.status == "RANK_UNCERTAIN"
        ),
        "are known as lower bounds only": lambda r: bool(np.isnan(r.kappa_plus) and np.isfinite(r.kappa_lower)),
        "spectra did not converge": lambda r: not r.converged,
        "have another reservation, told in their notes": (
            lambda r: r.status not in {"CONVERGED", "RANK_UNCERTAIN"} and r.converged
        ),
    }
    parts, where = [], []
    for words, condition in conditions.items():
        having = [pair for pair in some if condition(pair[1])]
        if having:
            parts.append(f"{len(having)} {words}")
            where += having
    if parts:
        return _finding(f"Of these numbers {', and '.join(parts)}", where)
    return _finding(f"All {len(some)} spectra are complete, and each has a clear gap at the rank rule's cutoff", some)


def _limits(reports: Mapping[Label, Analyzed]) -> Finding:
    # `meta` may hold what its reader likes, under these names too.
    batch = max((_arguments.number(report.meta.get("batch"), "iu") or 0 for report in reports.values()), default=0)
    accuracies = {
        label.network: accuracy
        for label, report in reports.items()
        if (accuracy := _arguments.number(report.meta.get("accuracy"))) is not None
    }
    trained = ", ".join(f"{name or 'the network'} {100 * accuracy:.1f} %" for name, accuracy in accuracies.items())
    trained = f" (test accuracy after training: {trained})" if trained else ""
    return Finding(
        f"This is one random seed and one batch of {batch:.0f} samples{trained}: an observation. Whether better "
        "conditioned blocks train faster takes many seeds and tuned learning rates, and is not shown here."
    )


def _side(report: Analyzed, wrt: Wrt) -> list[Row]:
    """The rows of a side that have figures."""
    return [row for _, row in _of([(Label(), row) for row in report.rows], wrt)]


def _of(rows: Rows, wrt: Wrt) -> list[tuple[Label, Row]]:
    """Those of a side that have figures, of the Gauss-Newton part."""
    there = lambda row: row.has_figures and row.size and row.part == "gauss_newton"
    return [(label, row) for label, row in rows if row.symbol == SYMBOLS[wrt] and there(row)]


def _median(rows: Rows | list[tuple[Label, Row]], column: str) -> float:
    values = np.array([_known(row, column) for _, row in rows], float)
    return float(np.nanmedian(values)) if np.any(np.isfinite(values)) else float("nan")


def _known(row: Row, column: str) -> float:
    """The figure, or its lower bound where that is all."""
    value = float(getattr(row, column))
    return float(getattr(row, INTERVALS[column][0])) if np.isnan(value) and column in INTERVALS else value


def _share(rows: Rows) -> float:
    return float(np.median([row.rank / row.size for _, row in rows]))


def _finding(sentence: str, rows: Iterable[tuple[Label, Row]]) -> Finding:
    text = sentence[0].upper() + sentence[1:] if sentence.split(maxsplit=1)[0].isalpha() else sentence
    return Finding(f"{text}.", tuple(dict.fromkeys((label, row.key) for label, row in rows)))


def _named(rows: Rows) -> str:
    """Blocks by name, once each; of several reports with theirs."""
    blocks: dict[Label, dict[str, None]] = {}
    for label, row in rows:
        blocks.setdefault(label, {})[f"`{row.block}`"] = None
    return "; ".join(_listed(list(names)) + _behind(label) for label, names in blocks.items())


def _block(label: Label, row: Row) -> str:
    return f"`{row.block}`{_behind(label)}"


def _behind(label: Label) -> str:
    return f" of {label}" if any(label) else ""


def _listed(words: list[str]) -> str:
    shown = words if len(words) <= LISTED else [*words[: LISTED - 1], f"{len(words) - LISTED + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
