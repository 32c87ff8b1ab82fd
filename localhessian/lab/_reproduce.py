"""`localhessian reproduce`: run a claim, and leave its data, table, figure and verdict behind."""

from collections.abc import Sequence
from pathlib import Path

from localhessian._files import write_text
from localhessian._grid import grid
from localhessian._progress import Progress, silent
from localhessian.analysis import write_figure
from localhessian.lab._cifar import load_images
from localhessian.lab.claims import CLAIMS, SIZES, Claim, Frame, Judgement, Setting, evidence


def listing() -> str:
    """Name, title and cost of every claim, in columns."""
    columns = {"name": "left", "claim": "left", "small": "left", "full": "left"}
    rows = [[claim.name, claim.title, claim.cost["small"], claim.cost["full"]] for claim in CLAIMS.values()]
    return "\n".join(grid(columns, [("", rows)]))


def claim_named(name: str) -> Claim:
    """A claim.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in CLAIMS:
        raise ValueError(f"there is no claim {name!r}: use {', '.join(CLAIMS)} (`--list` tells more).")
    return CLAIMS[name]


def setting_of(
    claim: Claim,
    size: str,
    seeds: Sequence[int] = (),
    data: str = "",
    folder: str | Path | None = None,
) -> Setting:
    """What a claim is measured with.

    Args:
        claim: Which; what is left out is as it says.
        size: `small` or `full`.
        seeds: Which.
        data: Images, as `load_images` takes them.
        folder: Where they lie, if that is not the cache.

    Raises:
        ValueError: Another size; a seed is negative or occurs twice; as `load_images`.
    """
    chosen = next((one for one in SIZES if one == size), None)
    if chosen is None:
        raise ValueError(f"`size` must be one of {', '.join(SIZES)}, got {size!r}.")
    seeds = tuple(seeds) or tuple(range(claim.seeds[chosen]))
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must be different numbers from 0, got {', '.join(map(str, seeds))}.")
    return Setting(chosen, seeds, load_images(data or claim.data[chosen], folder))


def reproduce(
    claim: Claim, setting: Setting, out: str | Path, *, progress: Progress = silent
) -> tuple[Frame, Judgement]:
    """Measure what is missing; write `data.csv`, `meta.json`, `table.txt`, `figure.png` and `verdict.txt`.

    Table, figure and verdict are those of the data as it is written.

    Args:
        claim: Which.
        setting: With what.
        out: Folder; the same call again goes on where it stopped.
        progress: Called with (done, total, what).

    Returns:
        The data and the judgement.

    Raises:
        ValueError: The folder holds the claim in another setting, or another process works on it.
        OSError: It cannot be written to.
    """
    out = Path(out)
    data = evidence(claim, setting, out, progress=progress)
    judgement = claim.verdict(data)
    write_text(out / "table.txt", f"{claim.table(data)}\n")
    write_figure(claim.figure(data), out / "figure.png")
    write_text(out / "verdict.txt", f"{judgement}\n")
    return data, judgement


def told(claim: Claim, data: Frame, judgement: Judgement, out: Path) -> str:
    """What is printed in the end: the verdict first."""
    lines = [f"{claim.title}", f"{judgement}", "", claim.table(data), "", f"The paper: {claim.says}"]
    lines += [f"The rule: {claim.rule}", f"Written: data.csv, meta.json, table.txt, figure.png, verdict.txt in {out}/"]
    return "\n".join(lines)
