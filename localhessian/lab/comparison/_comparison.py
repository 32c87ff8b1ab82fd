"""The result of a comparison: means over seeds with their intervals."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from localhessian._brief import named, wrapped
from localhessian._optional import optional
from localhessian.lab.comparison._outcome import Outcome, outcomes
from localhessian.lab.comparison._plan import Plan
from localhessian.lab.comparison._run import Run
from localhessian.lab.comparison._view import curves, table


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Finished runs of several algorithms; printing gives the table.

    The first algorithm is the one that the others are compared with. No single run is shown: figures are means over the
    seeds with 95 % intervals.
    """

    runs: tuple[Run, ...]
    plan: Plan
    meta: dict[str, Any]
    """Settings, networks, device and versions: JSON types only."""

    @classmethod
    def load(cls, out: str | Path) -> "Comparison":
        """Read a study from its folder.

        Raises:
            ValueError: The folder holds no study, or a file in it is damaged.
        """
        head = Path(out) / "study.json"
        if not head.exists():
            raise ValueError(f"`{out}` holds no study (no study.json): pass the folder that `compare` wrote to.")
        meta = read_head(head)
        runs = [Run.load(path) for path in sorted((Path(out) / "runs").rglob("*.json"))]
        order = {name: i for i, name in enumerate((*meta["networks"], *meta["algorithms"]))}
        plan = _plan(head, meta)
        runs = [run for run in runs if run.role == "tuning" or run.seed in plan.final_seeds()]
        runs = [run for run in runs if run.network in order and run.algorithm in order]
        runs.sort(key=lambda run: (order[run.network], order[run.algorithm], run.role == "final", run.seed))
        return cls(tuple(runs), plan, meta)

    def outcomes(self) -> list[Outcome]:
        """By network, then by algorithm, in the order of the runs. Algorithms with unfinished runs are left out."""
        return outcomes(self.runs, self.plan.seeds)

    def table(self) -> str:
        """The outcomes as text in columns."""
        return table(self.outcomes())

    def plot(self, path: str | Path | None = None) -> Any:
        """Curves with bands of 95 % over the seeds, as a matplotlib Figure; written to `path` if given.

        Needs matplotlib: `pip install 'localhessian[report]'`.
        """
        return curves(self.runs, self.outcomes(), path)

    def to_dataframe(self) -> Any:
        """The outcomes as a pandas DataFrame. Needs pandas: `pip install 'localhessian[report]'`."""
        return optional("pandas").DataFrame([outcome.record() for outcome in self.outcomes()])

    def factors(self) -> Any:
        """What scale-amended SGD multiplied the gradients by, as a tidy pandas DataFrame.

        Columns network, algorithm, seed, step, block (from 1, in the order of the chain) and factor: of the final runs,
        at each test. Needs pandas: `pip install 'localhessian[report]'`.
        """
        rows = [
            (run.network, run.algorithm, run.seed, int(step), block, float(factor))
            for run in self.runs
            if run.role == "final"
            for step, of_blocks in zip(run.curve.at, run.curve.factors, strict=False)
            for block, factor in enumerate(of_blocks, 1)
        ]
        return optional("pandas").DataFrame(rows, columns=["network", "algorithm", "seed", "step", "block", "factor"])

    def __repr__(self) -> str:
        """What was compared, and by how many runs."""
        networks, algorithms = (
            dict.fromkeys(getattr(run, kind) for run in self.runs) for kind in ("network", "algorithm")
        )
        return wrapped(f"Comparison({len(self.runs)} runs: {named(tuple(algorithms))} on {named(tuple(networks))})")

    def __str__(self) -> str:
        """The table."""
        return self.table()


def read_head(head: Path) -> dict[str, Any]:
    """What a study.json holds.

    Raises:
        ValueError: It is damaged.
    """
    try:
        meta = json.loads(head.read_text(encoding="utf-8"))
        of_dicts = [meta[name] for name in ("settings", "networks", "algorithms", "plan")] + [meta.get("programs", {})]
        if not all(isinstance(entry, dict) for entry in of_dicts):
            raise ValueError("its entries are of other kinds")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(_damaged(head, error)) from error
    return meta


def _plan(head: Path, meta: dict[str, Any]) -> Plan:
    try:
        return Plan(**meta["plan"])
    except (ValueError, TypeError) as error:
        raise ValueError(_damaged(head, error)) from error


def _damaged(head: Path, error: Exception) -> str:
    return (
        f"`{head}` is damaged: choose another folder, or remove this one's study.json and go on with the very settings "
        f"of the runs beside it. ({type(error).__name__}: {error!s:.100})"
    )
