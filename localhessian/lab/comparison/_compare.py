"""Run a comparison: tune every algorithm on the same budget, then the final runs; what is finished is kept."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from localhessian._files import folder_of_ones_own, write_text
from localhessian._progress import Progress, silent
from localhessian._tree import shapes
from localhessian._types import Loss
from localhessian._version import __version__
from localhessian.lab._augment import Augmentation
from localhessian.lab._data import Images
from localhessian.lab.comparison._algorithm import Algorithm
from localhessian.lab.comparison._checkpoint import Checkpoint
from localhessian.lab.comparison._comparison import Comparison, read_head
from localhessian.lab.comparison._outcome import best
from localhessian.lab.comparison._plan import Plan
from localhessian.lab.comparison._run import Run
from localhessian.lab.comparison._trainer import PLAIN, Curve, Trainer
from localhessian.lab.zoo import Network


def compare(
    networks: Sequence[Network],
    algorithms: Sequence[Algorithm],
    data: Images,
    plan: Plan,
    *,
    out: str | Path,
    augment: Augmentation = PLAIN,
    loss: Loss = optax.softmax_cross_entropy_with_integer_labels,
    progress: Progress = silent,
) -> Comparison:
    """Compare training algorithms on the same budget.

    For each network and algorithm: every learning rate of the plan's grid is tried on a validation part of the training
    data, the best is run for every seed, and tested on the testing part, which tuning never sees. The final runs go
    seed by seed through the algorithms, so that a machine which becomes slower is so for all. Each finished run is a
    file in `out`, and an unfinished one has a checkpoint there: the same call again goes on where it was
    interrupted. More seeds, algorithms and networks may be added later.

    Args:
        networks: What is trained; names differ.
        algorithms: How; names differ. The others are compared with the first.
        data: Samples and labels.
        plan: The budget.
        out: Folder of the study.
        augment: Of the training batches, and normalization of both.
        loss: Per-sample losses, shape `(n,)`.
        progress: Called with (runs done, runs in total, what runs now).

    Returns:
        Every run, with table, figure and data frame.

    Raises:
        ValueError: Names that occur twice, a folder of another study, or data too few for a batch.

    Cost: networks x algorithms x (trials x tuning_seeds + seeds) runs of `steps` steps; one compilation for each
    network and algorithm.
    """
    _check_names("networks", networks)
    _check_names("algorithms", algorithms)
    out = Path(out)
    tuning, final = data.validation(max(1, round(plan.validation * len(data.train_x))))
    meta = _meta(networks, algorithms, data, plan, augment)
    trainers = [[Trainer(network, algorithm, loss, augment) for algorithm in algorithms] for network in networks]
    meta["programs"] = {_pair(trainer): trainer.program(final, plan.batch) for row in trainers for trainer in row}
    with folder_of_ones_own(out):
        _check_folder(out, meta)
        study = _Study(plan, out, progress, total=len(networks) * len(algorithms) * plan.runs)
        for row in trainers:
            contestants = [_Contestant(study, trainer) for trainer in row]
            rates = [contestant.tuned(tuning) for contestant in contestants]
            for seed in plan.final_seeds():
                for contestant, rate in zip(contestants, rates, strict=True):
                    contestant.run(final, rate, seed, "final")
        progress(study.total, study.total, "done")
    return Comparison(tuple(study.runs), plan, meta)


@dataclasses.dataclass
class _Study:
    """The runs so far."""

    plan: Plan
    out: Path
    progress: Progress
    total: int
    runs: list[Run] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Contestant:
    """One algorithm on one network: its runs, from their files or made now."""

    study: _Study
    trainer: Trainer
    warm: bool = False

    def tuned(self, data: Images) -> float:
        """The best learning rate of the grid."""
        plan = self.study.plan
        rates = plan.learning_rates(self.trainer.algorithm.grid)
        return best([self.run(data, r, seed, "tuning") for r in rates for seed in plan.trial_seeds()]).learning_rate

    def run(self, data: Images, rate: float, seed: int, role: Literal["tuning", "final"]) -> Run:
        """One run; it is added to those of the study."""
        study, names = self.study, (self.trainer.network.name, self.trainer.algorithm.name)
        what = f"{' / '.join(names)} / {role}, learning rate {rate:g}, seed {seed}"
        study.progress(len(study.runs), study.total, what)
        unfinished = Run(*names, rate, seed, role, Curve(*(np.zeros(0),) * 5))
        path = study.out / "runs" / unfinished.place
        if not path.exists():
            checkpoint = Checkpoint(
                study.out / "unfinished" / unfinished.place.with_suffix(""), study.plan.checkpoint_every
            )
            dataclasses.replace(unfinished, curve=self._train(data, rate, seed, checkpoint)).save(path)
            checkpoint.remove()
        run = Run.load(path)
        if len(run.curve.losses) != study.plan.steps:
            raise ValueError(f"`{path}` is a run of {len(run.curve.losses)} steps: remove it, and it is made again.")
        study.runs.append(run)
        return run

    def _train(self, data: Images, rate: float, seed: int, checkpoint: Checkpoint) -> Curve:
        plan = self.study.plan
        if not self.warm:
            self.trainer.warm(data, plan.batch)
            self.warm = True
        _, curve = self.trainer.run(
            data,
            steps=plan.steps,
            batch=plan.batch,
            learning_rate=rate,
            schedule=plan.schedule,
            seed=seed,
            evaluations=plan.evaluations,
            checkpoint=checkpoint,
        )
        return curve


def _check_names(what: str, things: Sequence[Any]) -> None:
    names = [thing.name for thing in things]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`{what}` must have different names, got {', '.join(names) or 'none'}.")
    odd = [name for name in names if not name.replace("-", "").replace("_", "").replace(".", "").isalnum()]
    if odd:
        raise ValueError(f"`{what}`: names become folders, so use letters, digits, `-`, `_` and `.`, got {odd[0]!r}.")


def _meta(
    networks: Sequence[Network], algorithms: Sequence[Algorithm], data: Images, plan: Plan, augment: Augmentation
) -> dict[str, Any]:
    """What a run depends on besides its algorithm, learning rate and seed; and the machine."""
    digest = hashlib.sha256()
    for array in data:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    settings = dataclasses.asdict(plan)
    for name in ("seeds", "first_seed", "checkpoint_every"):  # these change no run
        del settings[name]
    return {
        "settings": {"data": digest.hexdigest(), "augment": str(augment)} | settings,
        "networks": {network.name: _shapes(network) for network in networks},
        "algorithms": {algorithm.name: list(algorithm.grid) for algorithm in algorithms},
        "plan": dataclasses.asdict(plan),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "localhessian": __version__,
    }


def _pair(trainer: Trainer) -> str:
    return f"{trainer.network.name} by {trainer.algorithm.name}"


def _shapes(network: Network) -> str:
    return shapes(jax.eval_shape(lambda: network.start(jax.random.key(0))[0]))


def _check_folder(out: Path, meta: dict[str, Any]) -> None:
    """A folder holds one study: runs of other settings or networks must not mix."""
    head = out / "study.json"
    if head.exists():
        there = read_head(head)
        old = there["settings"]
        different = [f"{k}: {old.get(k)}, now {v}" for k, v in meta["settings"].items() if old.get(k) != v]
        for kind in ("networks", "algorithms"):
            different += [f"{kind[:-1]} {k}" for k, v in meta[kind].items() if there[kind].get(k, v) != v]
            meta = meta | {kind: there[kind] | meta[kind]}
        programs = there.get("programs", {})
        if there.get("jax") == meta["jax"]:  # another version traces other programs
            different += [f"program of {k}" for k, v in meta["programs"].items() if programs.get(k, v) != v]
        meta = meta | {"programs": programs | meta["programs"]}
        if different:
            raise ValueError(
                f"`{out}` holds a study with other settings ({'; '.join(different)}): choose another folder for `out`."
            )
    write_text(head, json.dumps(meta, indent=2))
