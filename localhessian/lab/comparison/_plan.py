"""What every algorithm gets: the same steps, the same trials, the same seeds."""

import dataclasses

import numpy as np

from localhessian._arguments import expect_choice, expect_count, expect_share
from localhessian.lab.comparison._trainer import SCHEDULES

FIRST_TRIAL = 1_000_000
"""Seeds from here on are those of tuning runs."""
_COUNTS = ("steps", "batch", "trials", "tuning_seeds", "evaluations", "checkpoint_every")


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
        ValueError: A value of another kind, or out of its range.
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
        for name in _COUNTS:
            expect_count(name, getattr(self, name), 1)
        expect_count("first_seed", self.first_seed, 0)
        expect_count("seeds", self.seeds, 1)
        if self.seeds < 2:
            raise ValueError(f"`seeds` must be at least 2, got {self.seeds}: a single run is no result, take 5.")
        for name in (*_COUNTS, "first_seed", "seeds"):
            object.__setattr__(self, name, int(getattr(self, name)))
        expect_choice("schedule", self.schedule, tuple(SCHEDULES))
        if self.first_seed + self.seeds > FIRST_TRIAL:
            raise ValueError(f"`first_seed` must be between 0 and {FIRST_TRIAL - self.seeds}, got {self.first_seed}.")
        expect_share("validation", self.validation)

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
