"""One finished run, as a file."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from localhessian._brief import by_value
from localhessian._files import write_text
from localhessian.lab.comparison._trainer import Curve

_FORMAT = {"format": "localhessian run", "version": 1}
MAX_BYTES = 2**28
"""Of a file; a run of a million steps takes a tenth of it."""


@by_value
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

    @property
    def place(self) -> Path:
        """Where its file lies in the folder of the runs."""
        name = f"{self.role}-rate={self.learning_rate:g}-seed={self.seed}.json"
        return Path(self.network, self.algorithm, name)

    def save(self, path: Path) -> None:
        """Write JSON; an interruption leaves no half of it."""
        record = _FORMAT | dataclasses.asdict(self)
        record["curve"] = {name: _to_json(values) for name, values in self.curve._asdict().items()}
        write_text(path, json.dumps(record, allow_nan=False))

    @classmethod
    def load(cls, path: Path) -> "Run":
        """Read what `save` wrote.

        Raises:
            ValueError: The file is no run, or is damaged.
        """
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES} bytes")
            record = json.loads(path.read_text(encoding="utf-8"))
            if {key: record.pop(key, None) for key in _FORMAT} != _FORMAT:
                raise ValueError("another format")
            curve = _checked(Curve(**{name: _from_json(values) for name, values in record.pop("curve").items()}))
            run = cls(curve=curve, **record)
            for name, kinds in _KINDS.items():
                if type(getattr(run, name)) not in kinds:
                    raise ValueError(f"`{name}` is {getattr(run, name)!r:.40}")
            if path.parts[-3:] != run.place.parts:
                raise ValueError(f"it is the run of another place, {run.place!s:.80}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(
                f"`{path}` is not a finished run, or it is damaged: remove it, and it is made again. ({error})"
            ) from error
        return run


_KINDS: dict[str, tuple[type, ...]] = {
    "network": (str,),
    "algorithm": (str,),
    "learning_rate": (float, int),
    "seed": (int,),
    "role": (str,),
}


def _checked(curve: Curve) -> Curve:
    """Refuse what no training leaves."""
    at, many = curve.at, len(curve.at)
    if (
        at.dtype.kind != "i"
        or at.ndim != 1
        or not many
        or np.any(np.diff(at, prepend=0) < 1)
        or curve.losses.shape != (at[-1],)
    ):
        raise ValueError("its tests are not those of its steps")
    if any(values.shape != (many,) for values in (curve.loss, curve.accuracy, curve.seconds)):
        raise ValueError("its curves are of different lengths")
    if curve.factors.size and curve.factors.shape[:1] != at.shape:
        raise ValueError("its factors are not those of its tests")
    if not np.any(np.isfinite(curve.accuracy) & np.isfinite(curve.seconds)):
        raise ValueError("it has no test")
    return curve


def _to_json(values: np.ndarray) -> list[Any]:
    """JSON has no NaN and no infinity: these become null and text."""
    if values.ndim > 1:
        return [_to_json(row) for row in values]
    return [None if np.isnan(v) else v if np.isfinite(v) else str(v) for v in values.tolist()]


def _from_json(values: list[Any]) -> np.ndarray:
    if values and all(isinstance(row, list) for row in values):
        return np.array([_from_json(row) for row in values])
    numbers = [float("nan") if v is None else float(v) if isinstance(v, str) else v for v in values]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
        raise ValueError("its curves hold what is no number")
    return np.array(numbers)
