"""The demonstration: small networks on the digits, analyzed before and after training."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import optax
from tqdm import tqdm

from localhessian._version import __version__
from localhessian.analysis import Label, Report, analyze
from localhessian.lab._data import Images, digits
from localhessian.lab._train import train
from localhessian.lab._written import file_of
from localhessian.lab.zoo import digits_network
from localhessian.network import Chain

STAGES = ("at initialization", "after training")
_BEGUN = "demo"
"""In the meta of a report: the settings of a demonstration that is not finished."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Its settings, as `localhessian demo` takes them."""

    steps: int
    learning_rate: float
    batch: int
    depth: int
    width: int
    seed: int

    def reports(self, models: list[str], out: Path, failed: list[str]) -> Iterator[tuple[Label, Report]]:
        """One after the other, each written as soon as it is there; those of one that was interrupted are read again.

        Args:
            models: Of `digits_network`.
            out: Folder of the reports.
            failed: Gets a sentence for each network that cannot be analyzed after training.

        Yields:
            Label and report.

        Raises:
            KeyboardInterrupt: It was interrupted; what is done is written.
        """
        data = digits()
        for model in models:
            before, after = (Label(model, stage) for stage in STAGES)
            chain, params = digits_network(model, jax.random.key(self.seed), depth=self.depth, width=self.width)
            yield before, self._analyzed(before, chain, params, data, out)
            earlier = self._earlier(after, out)
            if earlier is not None and not earlier.meta["interrupted"]:
                yield after, earlier
                continue
            with tqdm(total=self.steps, desc=f"{model}, training", unit="step", disable=None) as bar:
                trained = train(
                    chain,
                    params,
                    data,
                    steps=self.steps,
                    learning_rate=self.learning_rate,
                    seed=self.seed,
                    progress=_follow(bar),
                )
            try:
                yield after, self._analyzed(after, chain, trained.params, data, out, accuracy=trained.accuracy)
            except ValueError as error:  # the other networks, and this one before training, are worth telling
                failed.append(f"{model} after training cannot be analyzed (has it diverged?): {error}")

    def finished(self, reports: dict[Label, Report]) -> dict[Label, Report]:
        """The reports as another demonstration does not read them again."""
        return {label: report.with_meta(**{_BEGUN: None}) for label, report in reports.items()}

    @property
    def _told(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"versions": [__version__, jax.__version__]}

    def _earlier(self, label: Label, out: Path) -> Report | None:
        with contextlib.suppress(OSError, ValueError):
            report = Report.load(file_of(label, out))
            return report if report.meta.get(_BEGUN) == self._told else None
        return None

    def _analyzed(self, label: Label, chain: Chain, params: dict, data: Images, out: Path, **meta: Any) -> Report:
        earlier = self._earlier(label, out)
        if earlier is not None and not earlier.meta["interrupted"]:
            return earlier
        x, y = data.train_x[: self.batch], data.train_y[: self.batch]
        shape = "{desc:<22} {n_fmt}/{total_fmt} {elapsed}{postfix}"
        what = f"{label.network}, {'before' if label.stage == STAGES[0] else 'after'}"
        with tqdm(desc=what, unit="spectrum", bar_format=shape, disable=None) as bar:

            def show(done: int, total: int, name: str) -> None:
                bar.total, bar.n = total, done
                bar.set_postfix_str(name)

            loss = optax.softmax_cross_entropy_with_integer_labels
            settings: dict[str, Any] = {"progress": show, "samples_per_block": self.batch, "resume": earlier}
            report = analyze(chain, params, x, y, loss, **settings)
        report = report.with_meta(label=list(label), **{_BEGUN: self._told}, **meta)
        report.save(file_of(label, out))
        if report.meta["interrupted"]:
            raise KeyboardInterrupt
        return report


def _follow(bar: tqdm) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        bar.update(done - bar.n)

    return show
