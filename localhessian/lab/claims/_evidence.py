"""The data of a claim: measured case by case, each kept as a file, so that the same call goes on where it stopped."""

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._files import folder_of_ones_own, write_text
from localhessian._optional import optional
from localhessian._progress import Progress, silent
from localhessian._version import __version__
from localhessian.lab._data import Images
from localhessian.lab.claims._claim import Claim, Frame, Point, Setting, Work

STEPS = 1000
"""Of the progress that a case counts as: it may tell shares of itself."""


def evidence(claim: Claim, setting: Setting, out: Path, *, progress: Progress = silent) -> Frame:
    """Measure every case of a claim that is not in the folder yet.

    Args:
        claim: Which.
        setting: With which size, seeds and images.
        out: Folder; gets `data.csv` with a line for each row, `meta.json` with versions, device, seeds and settings,
            and `cases/` with what is finished.
        progress: Called with (done, total, what); a case counts as `STEPS`.

    Returns:
        What `read` reads there.

    Raises:
        ValueError: The folder holds the claim in another setting (the difference is named), or another process works
            on it.
        OSError: It cannot be written to.
    """
    points = [dict(point) for point in claim.points(setting)]
    meta = _meta(claim, setting)
    with folder_of_ones_own(out):
        _check(out, meta)
        cases = [_Case(number, len(points), point, out, progress) for number, point in enumerate(points)]
        found = [case.kept() or case.finish(claim, setting) for case in cases]
        progress(STEPS * len(points), STEPS * len(points), "done")
        rows = [{**of_case["point"], **row} for of_case in found for row in of_case["rows"]]
        seconds = round(sum(of_case["seconds"] for of_case in found), 1)
        meta |= {"seeds": list(setting.seeds), "cases": len(points), "seconds": seconds}
        table = optional("pandas").DataFrame(rows)
        write_text(out / "data.csv", table.to_csv(index=False, float_format="%.6g", na_rep="nan"))
        write_text(out / "meta.json", json.dumps(meta, indent=2) + "\n")
    return read(out)


def read(folder: Path) -> Frame:
    """The data in a folder, as it was written; `.attrs` holds what `meta.json` tells."""
    data = optional("pandas").read_csv(folder / "data.csv", keep_default_na=False, na_values=["nan"])
    data.attrs.update(json.loads((folder / "meta.json").read_text(encoding="utf-8")))
    return data


class _Case:
    """One of the cases: its file, and how far it is."""

    def __init__(self, number: int, total: int, point: Point, out: Path, progress: Progress):
        self.number, self.total, self.point, self.progress = number, total, point, progress
        words = "-".join(re.sub(r"[^\w.]+", "", str(value)) for value in point.values())
        digest = hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:8]
        self.folder = out / "cases" / f"{words[:80]}-{digest}"
        self.file = self.folder.with_name(f"{self.folder.name}.json")

    def tell(self, share: float, what: str) -> None:
        """Progress, by the share of this case that is done."""
        place = ", ".join(f"{name}={value}" for name, value in self.point.items())
        done = round(STEPS * (self.number + min(max(share, 0.0), 1.0)))
        self.progress(done, STEPS * self.total, ": ".join(filter(None, (place, what))))

    def kept(self) -> dict[str, Any] | None:
        """What was found before."""
        return json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else None

    def finish(self, claim: Claim, setting: Setting) -> dict[str, Any]:
        """Measure, and keep."""
        self.tell(0.0, "")
        begun = time.perf_counter()
        # Models in flax add what has several types and ranks, which the user's settings may forbid.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            rows = [_plain(row) for row in claim.measure(self.point, Work(setting, self.folder, self.tell))]
        found = {"point": self.point, "rows": rows, "seconds": round(time.perf_counter() - begun, 2)}
        write_text(self.file, json.dumps(found))
        return found


def _plain(row: Any) -> dict[str, Any]:
    """JSON's own numbers, with infinity and NaN."""
    return {name: value.item() if isinstance(value, np.generic | jax.Array) else value for name, value in row.items()}


def _meta(claim: Claim, setting: Setting) -> dict[str, Any]:
    return {
        "claim": claim.name,
        "size": setting.size,
        "images": _digest(setting.images),
        "dtype": str(jnp.result_type(float)),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "localhessian": __version__,
    }


def _digest(images: Images) -> str:
    digest = hashlib.sha256()
    for array in images:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _check(out: Path, meta: dict[str, Any]) -> None:
    """Cases of other settings must not mix; seeds may be added."""
    head = out / "cases" / "setting.json"
    if head.exists():
        there = json.loads(head.read_text(encoding="utf-8"))
        different = [
            f"{name}: {there.get(name)}, now {value}" for name, value in meta.items() if there.get(name) != value
        ]
        if different:
            raise ValueError(
                f"`{out}` holds cases of another setting ({'; '.join(different)}): choose another folder for `out`, or "
                "remove this one."
            )
    write_text(head, json.dumps(meta, indent=2))
