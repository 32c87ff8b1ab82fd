"""The command line: `localhessian --help` is the map."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import jax
from tqdm import tqdm

from localhessian._files import check_folder
from localhessian._optional import optional
from localhessian._version import __version__
from localhessian.analysis import Label, Report, stored_label
from localhessian.lab._augment import Augmentation
from localhessian.lab._cifar import load_images
from localhessian.lab._data import digits
from localhessian.lab._demo import Demo
from localhessian.lab._own import FORMS, METHODS, asked_for, listed, run_analysis, run_plan
from localhessian.lab._programs_kept import keep_programs
from localhessian.lab._reproduce import claim_named, listing, reproduce, setting_of, told
from localhessian.lab._sweeps import Asked, asked_of, axis_of, closing, forecast, run_asked
from localhessian.lab._written import write_comparison, write_reports
from localhessian.lab.comparison import DEFAULT_ALGORITHMS, Comparison, Plan, algorithm, compare
from localhessian.lab.zoo import MODELS, network
from localhessian.network import UnknownBlock

typer = optional("typer")
Own = Annotated[str, typer.Argument(help=f"`module:function`, which returns {FORMS}.")]
Blocks = Annotated[str, typer.Option(help="Names of blocks, with commas between; default: all.")]
Sides = Annotated[str, typer.Option(help="params, input, or both with a comma between.")]
Parts = Annotated[str, typer.Option(help="gauss_newton, full, residual, or several.")]
Samples = Annotated[int, typer.Option(min=1, help="Of an uncoupled H_z, how many, one by one.")]
Seconds = Annotated[float | None, typer.Option(help="What all may take: dear rows give way.")]
Bytes = Annotated[float | None, typer.Option(help="The same for the memory of each row.")]
app = typer.Typer(
    name="localhessian",
    help="Condition numbers and spectra of the local Hessians of every block of a network.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_show_locals=False,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"localhessian {__version__}, jax {jax.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
    cache: Annotated[
        bool, typer.Option(envvar="LOCALHESSIAN_CACHE", help="Keep compiled programs: the next run starts warm.")
    ] = True,
) -> None:
    if cache:
        keep_programs()


@app.command("demo")
def demo_command(
    models: Annotated[str, typer.Option(help=f"Networks to compare, of {', '.join(MODELS)}.")] = ",".join(MODELS),
    out: Annotated[Path, typer.Option(help="Folder for the figure, the page and the data.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps between the two analyses.")] = 400,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Of SGD with momentum 0.9.")] = 0.02,
    batch: Annotated[int, typer.Option(min=1, help="Images analyzed.")] = 16,
    depth: Annotated[int, typer.Option(min=1, help="Convolutional blocks.")] = 5,
    width: Annotated[int, typer.Option(min=1, help="Channels.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the initialization and the order of the images.")] = 0,
) -> None:
    """Train small convolutional networks on the UCI digits; analyze every block before and after."""
    _check(out)
    there = len(digits().train_x)
    if batch > there:
        raise typer.BadParameter(f"`--batch` must be at most {there}, the images there are, got {batch}.")
    demo = Demo(steps, learning_rate, batch, depth, width, seed)
    reports: dict[Label, Report] = {}
    failed: list[str] = []
    try:
        with _in_words():
            for label, report in demo.reports(_names(models), out, failed):
                reports[label] = report
    except KeyboardInterrupt:
        told = write_reports(reports, out) if reports else ""
        typer.echo(f"{told}\nInterrupted; the same command goes on from what is in {out}/.")
        raise typer.Exit(130) from None
    with _in_words():
        typer.echo(write_reports(demo.finished(reports), out))
    if failed:
        typer.echo("\n".join(["", *failed]), err=True)
        raise typer.Exit(1)


@app.command("analyze")
def analyze_command(
    case: Own,
    blocks: Blocks = "",
    wrt: Sides = "",
    part: Parts = "gauss_newton",
    samples: Samples = 16,
    method: Annotated[str, typer.Option(help=f"Of {', '.join(METHODS)}; default: chosen for each.")] = "",
    max_seconds: Seconds = None,
    max_bytes: Bytes = None,
    seed: Annotated[int, typer.Option(help="Of random start vectors.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the figure, the page and the data; again goes on.")] = Path(
        "runs/analyze"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, for scripts.")] = False,
) -> None:
    """Analyze a model of your own: spectra and condition numbers of every block."""
    _check(out)
    with _in_words():
        asked = asked_for(case, blocks, wrt, part, samples, method, max_seconds, max_bytes)
        report = run_analysis(asked, seed, out / "report.npz", quiet=as_json or not sys.stderr.isatty())
        if as_json:
            typer.echo(report.to_dataframe().to_json(orient="records", indent=2))
        else:
            typer.echo(write_reports({Label("", ""): report}, out))
    if report.meta["interrupted"]:
        raise typer.Exit(130)


@app.command("plan")
def plan_command(
    case: Own,
    blocks: Blocks = "",
    wrt: Sides = "",
    part: Parts = "gauss_newton",
    samples: Samples = 16,
    max_seconds: Seconds = None,
    max_bytes: Bytes = None,
) -> None:
    """Tell what `analyze` would do with a model of your own, and what it would take; nothing is decomposed."""
    with _in_words():
        asked = asked_for(case, blocks, wrt, part, samples, "", max_seconds, max_bytes)
        typer.echo(str(run_plan(asked, quiet=not sys.stderr.isatty())))


@app.command("train")
def train_command(
    data: Annotated[str, typer.Option(help="With commas between: digits, cifar10, cifar100, an .npz of yours.")] = (
        "digits"
    ),
    folder: Annotated[Path | None, typer.Option(help="Where the CIFAR files lie; default: download them.")] = None,
    images: Annotated[int | None, typer.Option(min=2, help="Use that many training images only.")] = None,
    test_images: Annotated[int | None, typer.Option(min=1, help="Test on that many images only.")] = None,
    networks: Annotated[str, typer.Option(help="Names, with commas between: plain, batchnorm, skip, tanh-20, ...")] = (
        "batchnorm"
    ),
    algorithms: Annotated[
        str, typer.Option(help="Names, the one to compare with first: momentum, adam, any optax optimizer, ...")
    ] = ",".join(DEFAULT_ALGORITHMS),
    steps: Annotated[int, typer.Option(min=1, help="Of every run.")] = 400,
    batch: Annotated[int, typer.Option(min=1, help="Images of each step.")] = 64,
    seeds: Annotated[int, typer.Option(help="Final runs; no interval is claimed below 5.")] = 5,
    first_seed: Annotated[int, typer.Option(min=0, help="The seeds are this one and those that follow.")] = 0,
    trials: Annotated[int, typer.Option(min=1, help="Learning rates that each algorithm tries.")] = 7,
    tuning_seeds: Annotated[int, typer.Option(min=1, help="Runs for each of these learning rates.")] = 2,
    schedule: Annotated[str, typer.Option(help="Of the learning rate: constant, or cosine down to 0.")] = "constant",
    validation: Annotated[float, typer.Option(help="Share of the training images set aside for tuning.")] = 0.1,
    evaluations: Annotated[int, typer.Option(min=1, help="Tests of each run.")] = 10,
    depth: Annotated[int, typer.Option(min=1, help="Of networks without a depth of their own.")] = 5,
    width: Annotated[int, typer.Option(min=1, help="Channels or units.")] = 16,
    augment: Annotated[bool, typer.Option(help="Random crops and flips.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the study; again with it goes on where it stopped.")] = (
        Path("runs/train")
    ),
) -> None:
    """Compare training algorithms: each tuned on the same budget, several seeds, means with intervals."""
    _check(out)
    try:
        with _in_words():
            plan = Plan(
                steps=steps,
                batch=batch,
                seeds=seeds,
                first_seed=first_seed,
                trials=trials,
                tuning_seeds=tuning_seeds,
                schedule=schedule,
                validation=validation,
                evaluations=evaluations,
            )
            contestants = [algorithm(name) for name in listed(algorithms)]
            for one in listed(data):
                loaded = load_images(one, folder).take(images, test_images)
                chosen = [network(name, loaded, depth=depth, width=width) for name in listed(networks)]
                how = Augmentation.standard(loaded, pad=4 if augment else 0, flip=augment)
                place = out / Path(one).stem if len(listed(data)) > 1 else out
                with tqdm(unit="run", disable=None) as bar:
                    result = compare(chosen, contestants, loaded, plan, out=place, augment=how, progress=_announce(bar))
                typer.echo(write_comparison(result, place, one))
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted; the same command goes on from what is in {out}/.")
        raise typer.Exit(130) from None


@app.command("reproduce")
def reproduce_command(
    name: Annotated[str, typer.Argument(help="Of a claim of the paper; `--list` names them.")] = "",
    size: Annotated[str, typer.Option(help="small: seconds; full: what the documentation shows.")] = "small",
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Once for each; default: as the claim says.")] = None,
    data: Annotated[str, typer.Option(help="digits, cifar10, cifar100, an .npz of yours; default: by size.")] = "",
    folder: Annotated[Path | None, typer.Option(help="Where the CIFAR files lie; default: download them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Default: runs/claims/NAME; again with it goes on.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="The claims and their cost.")] = False,
) -> None:
    """Put a claim of the paper to the test: data, table, figure and a verdict by a rule."""
    if list_all:
        return typer.echo(listing())
    with _in_words():
        claim = claim_named(name)
        setting = setting_of(claim, size, seed or (), data, folder)
        place = Path("runs/claims") / name if out is None else out
        typer.echo(f"{claim.title}: about {claim.cost[setting.size]}", err=True)
        try:
            with tqdm(bar_format="{percentage:3.0f}% |{bar}| {elapsed}<{remaining} {desc}", disable=None) as bar:
                data_found, judgement = reproduce(claim, setting, place, progress=_announce(bar))
        except KeyboardInterrupt:
            typer.echo(f"\nInterrupted; the same command goes on from what is in {place}/.", err=True)
            raise typer.Exit(130) from None
    typer.echo(told(claim, data_found, judgement, place))
    return None


@app.command("sweep")
def sweep_command(
    case: Annotated[str, typer.Argument(help="`module:function`, or a TOML file with `case` and `axes`.")],
    axis: Annotated[
        list[str], typer.Option(help="scale=logspace(-1,1,9), seed=0..9, width=16,32; once for each axis.")
    ] = [],  # noqa: B006  as typer wants it
    static: Annotated[
        str, typer.Option(help="Axes that change shapes, with commas between: one compilation each.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Dataset, .zarr or .nc; again with it goes on where it stopped.")
    ] = None,
    compiled: Annotated[bool, typer.Option(help="Inside programs; or as plain Python.")] = True,
    workers: Annotated[int, typer.Option(min=0, help="Processes for plain Python; 0: this one.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the keys of the cases.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what there is to do, by the first case.")] = False,
) -> None:
    """Run a case at every point between some axes: compiled once for each shape, resumable."""
    with _in_words():
        if case.endswith(".toml"):
            asked = asked_of(Path(case))
        else:
            axes = dict(map(axis_of, axis))
            asked = Asked(case, axes, tuple(listed(static)), None if out is None else str(out), compiled, seed)
        if dry_run:
            return typer.echo(forecast(asked))
        found = run_asked(asked, workers)
    typer.echo(f"{found}\n\n{closing(found, asked)}")
    if found.attrs["interrupted"]:
        raise typer.Exit(130)
    return None


@app.command("report")
def report_command(
    files: Annotated[list[Path], typer.Argument(help="Reports (.npz), a folder of them, or a study of `train`.")],
    out: Annotated[Path, typer.Option(help="Folder for the figure and the page.")] = Path("runs/report"),
) -> None:
    """Render table, figure and page again from saved reports, or table and curves from a study."""
    _check(out)
    if len(files) == 1 and (files[0] / "study.json").exists():
        with _in_words():
            return typer.echo(write_comparison(Comparison.load(files[0]), out, str(files[0])))
    paths = [path for file in files for path in (sorted(file.glob("*.npz")) if file.is_dir() else [file])]
    if not paths:
        raise typer.BadParameter(f"there is no report (.npz) in {', '.join(map(str, files))}.")
    with _in_words():
        loaded = [(path.stem, Report.load(path)) for path in paths]
    loaded.sort(key=lambda item: _place(item[1]))
    reports: dict[Label, Report] = {}
    for stem, report in loaded:
        label = stored_label(report.meta.get("label"), stem)
        reports[Label(f"{label.network} ({stem})", label.stage) if label in reports else label] = report
    with _in_words():
        typer.echo(write_reports(reports, out))


def _place(report: Report) -> int:
    place = report.meta.get("place")
    return place if isinstance(place, int) else 0


def _announce(bar: tqdm) -> Callable[[int, int, str], None]:
    def show(done: int, total: int, what: str) -> None:
        if bar.total is None:  # what was done before tells nothing of the pace
            bar.n = bar.initial = done
        bar.total = total
        bar.set_description(what, refresh=False)
        bar.update(done - bar.n)
        bar.refresh()

    return show


def _check(out: Path) -> None:
    """Before the work, not after it."""
    with _in_words():
        check_folder(out)


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """A sentence instead of a traceback, for what a user or a disk refuses."""
    try:
        yield
    except (ValueError, TypeError, OSError, UnknownBlock) as error:
        raise typer.BadParameter(str(error)) from error


def _names(models: str) -> list[str]:
    names = listed(models)
    unknown = [name for name in names if name not in MODELS]
    if unknown or not names:
        raise typer.BadParameter(f"`--models` takes names of {', '.join(MODELS)}, got {models!r}.")
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"`--models` names a network twice, got {models!r}: name each once.")
    return names


def main() -> None:
    """Run the command line."""
    app()
