"""Comparisons of training algorithms as the measurement of a case."""

import dataclasses
from collections.abc import Sequence

from localhessian.analysis import MINIMUM
from localhessian.lab._augment import Augmentation
from localhessian.lab._data import Images
from localhessian.lab.claims._claim import Work
from localhessian.lab.comparison import Network, Outcome, Plan, algorithm, compare


def studied(
    network: Network,
    algorithms: Sequence[str],
    images: Images,
    plan: Plan,
    work: Work,
    study: str,
    *,
    share: tuple[float, float] = (0.0, 1.0),
    augment: Augmentation | None = None,
    steps: int | None = None,
) -> list[Outcome]:
    """Algorithms on one network, the first of which the others are compared with; goes on where it stopped.

    Args:
        network: What is trained; the same object again compiles nothing.
        algorithms: By name.
        images: What is trained on.
        plan: The budget; its seeds are those of the setting.
        work: Of the case.
        study: Of the folder in that of the case.
        share: From where to where of the case this is, for the progress.
        augment: Default: normalization only.
        steps: Instead of the plan's.
    """
    seeds = work.setting.seeds
    plan = dataclasses.replace(plan, seeds=len(seeds), first_seed=min(seeds), steps=steps or plan.steps)
    begin, end = share
    comparison = compare(
        [network],
        [algorithm(one) for one in algorithms],
        images,
        plan,
        out=work.folder / study,
        augment=work.setting.augment if augment is None else augment,
        progress=lambda done, total, what: work.tell(begin + (end - begin) * done / max(total, 1), what),
    )
    return comparison.outcomes()


def consecutive(seeds: Sequence[int]) -> str:
    """The first and the last of them, in words.

    Raises:
        ValueError: There are gaps, or too few: a comparison runs several in a row, and decides by intervals.
    """
    first, last = min(seeds), max(seeds)
    if sorted(seeds) != list(range(first, last + 1)) or len(seeds) < MINIMUM:
        raise ValueError(
            f"`seeds` of this claim must be at least {MINIMUM} consecutive numbers, got {', '.join(map(str, seeds))}: "
            "it decides by intervals, which are claimed from so many on. Take "
            f"{', '.join(map(str, range(first, first + MINIMUM)))}."
        )
    return f"{first} to {last}"
