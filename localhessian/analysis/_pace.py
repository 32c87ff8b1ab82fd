"""How much of a loop's time measuring may take, and what it has taken."""

from collections.abc import Hashable, Sequence


class Pace:
    """The budget of a probe: seconds in it for each second of the loop outside of it.

    What is not used is saved up, and what was used too much is waited for: a measurement that does not fit comes later,
    or has fewer parts. Times are of any clock, in seconds.
    """

    def __init__(self, budget: float | None) -> None:
        """With a share of the time outside; None: no limit."""
        self.budget = budget
        self.spent = 0.0
        self._last: dict[Hashable, float] = {}
        self._costs: dict[Hashable, float] = {}
        self._begun: float | None = None

    def start(self, now: float) -> None:
        """From here on time counts."""
        self._begun = now

    def took(self, part: Hashable, seconds: float) -> None:
        """What a part took; the larger one of the last two times is expected of the next."""
        self._costs[part] = max(seconds, self._last.get(part, 0.0))
        self._last[part] = seconds

    def forget(self, part: Hashable) -> None:
        """What a part took was of a first time."""
        self._costs.pop(part, None)
        self._last.pop(part, None)

    def cost(self, part: Hashable) -> float:
        """Seconds that are expected of a part."""
        return self._costs.get(part, 0.0)

    def outside(self, now: float) -> float:
        """Seconds of the loop outside of the probe."""
        return 0.0 if self._begun is None else now - self._begun - self.spent

    def share(self, now: float, more: float = 0.0) -> float:
        """Seconds in the probe for each second of the loop outside of it; `more`: of the measurement at hand."""
        outside = self.outside(now) - more
        return (self.spent + more) / outside if outside > 0 else 0.0

    def allowance(self, now: float) -> float:
        """Seconds that a measurement may take now: half of what is there; one that takes twice as long fits still."""
        return float("inf") if self.budget is None else (self.budget * self.outside(now) - self.spent) / 2

    def needed(self, setup: Hashable, parts: Sequence[Hashable]) -> float:
        """Seconds without which no measurement should begin: for its setup, the next part, and as much in parts."""
        costs = [self.cost(part) for part in parts]
        return self.cost(setup) + max(costs[0], min(self.cost(setup), sum(costs)))
