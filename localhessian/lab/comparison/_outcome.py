"""What is said about one algorithm on one network, over all its final runs."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from localhessian._brief import by_value
from localhessian.analysis import Mean, interval
from localhessian.lab.comparison._run import Run


@by_value
class Tuned(NamedTuple):
    """The learning rate that did best on the validation part."""

    learning_rate: float
    at_edge: bool
    """Whether it is the smallest or the largest that was tried: a better one may lie outside."""
    accuracies: dict[float, float]
    """Mean validation accuracy of every trial."""


@by_value
@dataclasses.dataclass(frozen=True)
class Outcome:
    """One algorithm on one network, over its final runs."""

    network: str
    algorithm: str
    tuned: Tuned
    accuracy: Mean
    """On the testing part, after the last step."""
    loss: Mean
    """Of the testing part; infinite if a run diverged."""
    gain: Mean | None
    """Accuracy minus that of the first algorithm, seed by seed; None for the first itself."""
    step_seconds: Mean
    cost: float
    """Mean seconds of a step over those of the first algorithm."""
    diverged: int
    """Final runs that were stopped because their loss was not finite."""

    def record(self) -> dict[str, Any]:
        """One flat row for a data frame."""
        record: dict[str, Any] = {"network": self.network, "algorithm": self.algorithm, "seeds": self.accuracy.runs}
        record |= {"learning_rate": self.tuned.learning_rate, "at_edge": self.tuned.at_edge}
        for name in ("accuracy", "loss", "gain", "step_seconds"):
            mean, low, high, _ = getattr(self, name) or (float("nan"),) * 4
            record |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        return record | {"cost": self.cost, "diverged": self.diverged}


def best(trials: list[Run]) -> Tuned:
    """The learning rate of the highest mean validation accuracy; then of the lowest loss, then the smallest.

    A trial that diverged is worse than every one that did not.
    """
    rates = sorted({run.learning_rate for run in trials})
    scores = []
    for rate in rates:
        runs = [run for run in trials if run.learning_rate == rate]
        accuracy = sum(run.accuracy for run in runs) / len(runs)
        loss = sum(run.loss for run in runs) / len(runs)
        scores.append((any(run.curve.diverged for run in runs), -accuracy, loss))
    chosen = min(range(len(rates)), key=scores.__getitem__)
    accuracies = {rate: -score[1] for rate, score in zip(rates, scores, strict=True)}
    return Tuned(rates[chosen], chosen in {0, len(rates) - 1}, accuracies)


def final_runs(runs: Sequence[Run], network: str, algorithm: str) -> list[Run]:
    """The final runs of an algorithm on a network, by seed."""
    chosen = [run for run in runs if (run.network, run.algorithm, run.role) == (network, algorithm, "final")]
    return sorted(chosen, key=lambda run: run.seed)


def outcomes(runs: Sequence[Run], seeds: int) -> list[Outcome]:
    """By network, then by algorithm, in the order of the runs.

    Algorithms with less final runs, or none of tuning, are left out.
    """
    found = []
    for network in dict.fromkeys(run.network for run in runs):
        names = dict.fromkeys(run.algorithm for run in runs if run.network == network)
        tuned = {run.algorithm for run in runs if run.network == network and run.role == "tuning"}
        complete = [name for name in names if name in tuned and len(final_runs(runs, network, name)) >= seeds]
        found += [_outcome(runs, network, name, complete[0]) for name in complete]
    return found


def _outcome(runs: Sequence[Run], network: str, algorithm: str, baseline: str) -> Outcome:
    ours, others = final_runs(runs, network, algorithm), final_runs(runs, network, baseline)
    trials = [run for run in runs if (run.network, run.algorithm, run.role) == (network, algorithm, "tuning")]
    gains = [run.accuracy - other.accuracy for run, other in zip(ours, others, strict=True)]
    seconds, other_seconds = (interval([run.step_seconds for run in group]) for group in (ours, others))
    return Outcome(
        network=network,
        algorithm=algorithm,
        tuned=best(trials),
        accuracy=interval([run.accuracy for run in ours]),
        loss=interval([run.loss for run in ours]),
        gain=None if algorithm == baseline else interval(gains),
        step_seconds=seconds,
        cost=seconds.mean / other_seconds.mean,
        diverged=sum(run.curve.diverged for run in ours),
    )
