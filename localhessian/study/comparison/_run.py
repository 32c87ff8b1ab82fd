"""One finished run, as a file."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from localhessian._files import whole
from localhessian.study.comparison._trainer import Curve

_FORMAT = {"format": "localhessian run", "version": 1}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run. It is material for means over seeds, not a result."""

    network: str
    algorithm: str
    learning_rate: float
    seed: int
    role: Literal["tuning", "final"]
    """A tuning run is tested on the validation part, a final run on the testing part."""
    curve: Curve

    @property
    def accuracy(self) -> float:
        """At the last test; of a diverged run the accuracy where it was stopped."""
        return float(self.curve.accuracy[np.isfinite(self.curve.accuracy)][-1])

    @property
    def loss(self) -> float:
        """At the last test; infinite if the run diverged."""
        return float("inf") if self.curve.diverged else float(self.curve.loss[-1])

    @property
    def step_seconds(self) -> float:
        """Wall-clock of one training step, without compilation and tests."""
        done = np.flatnonzero(np.isfinite(self.curve.seconds))[-1]
        return float(self.curve.seconds[done] / self.curve.at[done])

    def train_loss(self) -> np.ndarray:
        """Mean loss of the batches since the test before, shape `(e,)`."""
        return np.array([part.mean() for part in np.split(self.curve.losses, self.curve.at[:-1])])

    def save(self, path: Path) -> None:
        """Write JSON; an interruption leaves no half of it."""
        record = _FORMAT | dataclasses.asdict(self)
        record["curve"] = {name: _to_json(values) for name, values in self.curve._asdict().items()}
        write_atomically(path, json.dumps(record, allow_nan=False))

    @classmethod
    def load(cls, path: Path) -> "Run":
        """Read what `save` wrote.

        Raises:
            ValueError: The file is no run, or is damaged.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if {key: record.pop(key, None) for key in _FORMAT} != _FORMAT:
                raise ValueError("another format")
            curve = Curve(**{name: _from_json(values) for name, values in record.pop("curve").items()})
            return cls(curve=curve, **record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"`{path}` is not a finished run, or it is damaged: remove it, and it is made again. ({error})"
            ) from error


def write_atomically(path: Path, text: str) -> None:
    """The whole text under that name, or what was there before."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def _to_json(values: np.ndarray) -> list[Any]:
    """JSON has no NaN and no infinity: these become null and text."""
    return [None if np.isnan(v) else v if np.isfinite(v) else str(v) for v in values.tolist()]


def _from_json(values: list[Any]) -> np.ndarray:
    numbers = [float("nan") if v is None else float(v) if isinstance(v, str) else v for v in values]
    return np.array(numbers)
