"""What every algorithm gets: the same steps, the same trials, the same seeds."""

import dataclasses

import numpy as np

from localhessian.study.comparison._trainer import SCHEDULES

FIRST_TRIAL = 1_000_000
"""Seeds from here on are those of tuning runs."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The budget of a comparison, equal for every algorithm.

    Args:
        steps: Of each run, tuning and final.
        batch: Samples of each step.
        seeds: Final runs, each with its initialization, order and augmentation; the same seeds for every algorithm, so
            differences are taken seed by seed. Below five no interval is claimed; a single run is refused.
        first_seed: The final runs have the seeds `first_seed`, `first_seed + 1`, ..
        trials: Learning rates tried by each algorithm, on a logarithmic grid over its range.
        tuning_seeds: Runs for each trial; their seeds are never those of final runs. With one run only, a learning rate
            at the brink of divergence wins easily.
        schedule: Of the learning rate within a run: `constant`, or `cosine` from the tuned value down to 0.
        validation: Training samples set aside for tuning, as a share of all.
        evaluations: Tests of each run.
        checkpoint_every: Steps between checkpoints of a run.

    Raises:
        ValueError: A value out of its range.
    """

    steps: int = 400
    batch: int = 64
    seeds: int = 5
    trials: int = 7
    tuning_seeds: int = 2
    first_seed: int = 0
    schedule: str = "constant"
    validation: float = 0.1
    evaluations: int = 10
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("steps", "batch", "trials", "tuning_seeds", "evaluations", "checkpoint_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
        if self.seeds < 2:
            raise ValueError(f"`seeds` must be at least 2, got {self.seeds}: a single run is no result, take 5.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"`schedule` must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}.")
        if self.first_seed < 0 or self.first_seed + self.seeds > FIRST_TRIAL:
            raise ValueError(f"`first_seed` must be between 0 and {FIRST_TRIAL - self.seeds}, got {self.first_seed}.")
        if not 0 < self.validation < 1:
            raise ValueError(f"`validation` must be a share between 0 and 1, got {self.validation}.")

    @property
    def runs(self) -> int:
        """Of each algorithm on each network."""
        return self.trials * self.tuning_seeds + self.seeds

    def learning_rates(self, grid: tuple[float, float]) -> list[float]:
        """The trials of an algorithm, with three digits; the middle of its range if there is one trial only."""
        low, high = np.log(grid)
        at = np.linspace(low, high, self.trials) if self.trials > 1 else [(low + high) / 2]
        return [float(f"{np.exp(value):.3g}") for value in at]

    def final_seeds(self) -> range:
        """Those of the final runs."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def trial_seeds(self) -> range:
        """Those of the tuning runs."""
        return range(FIRST_TRIAL, FIRST_TRIAL + self.tuning_seeds)
