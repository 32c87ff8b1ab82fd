"""What a user wrote in a module of their own, named on the command line."""

import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from localhessian import linalg
from localhessian._arguments import short
from localhessian.analysis import AnotherAnalysis, Plan, Report, analyze, plan, unfinished
from localhessian.network import Chain, Cut, chain_from_equinox, chain_from_linen, chain_from_nnx

NAMES = ("chain", "params", "x", "y", "loss", "context")
"""What a case consists of, as `lh.analyze` takes it; the context may be left out."""
MODEL = ("model", "x", "y", "loss")
"""Or a model of flax nnx or equinox, which is cut by default, or what `lh.chain_from_...` returns."""
LINEN = ("model", "variables", "x", "y", "loss")
FORMS = f"({', '.join(NAMES)}), ({', '.join(MODEL)}) or, of linen, ({', '.join(LINEN)})"


def function_of(place: str) -> Callable[..., Any]:
    """The function at `module:function`, also of a module in the folder that we are in.

    Raises:
        ValueError: There is none.
    """
    module, found, name = place.partition(":")
    if not (module and found and name):
        raise ValueError(f"a case is written `module:function`, got `{place}`.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no `{place}`: {error}.") from error
    if not callable(function):
        raise ValueError(f"`{place}` is no function but {short(function)}.")
    return function


def case_of(place: str) -> tuple[Any, ...]:
    """What `lh.analyze` takes, of the function at `module:function`: it returns one of `FORMS`, in order or by name.

    Raises:
        ValueError: There is no such function, or it returns something else, or a model that cannot be cut.
        RuntimeError: From whatever it raises, so that its own error keeps its traceback.
    """
    function = function_of(place)
    try:
        found = function()
    except Exception as error:
        raise RuntimeError(f"`{place}` failed: {error}") from error
    try:
        return _as_analyzed(found)
    except _NoCaseError as error:
        raise ValueError(
            f"`{place}` must return {FORMS}, also by these names, the context if there is one; {error}."
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"the model that `{place}` returns cannot be cut at its `x`: {error}") from error


class _NoCaseError(ValueError):
    pass


def _as_analyzed(found: Any) -> tuple[Any, ...]:
    """Chain, params, x, y, loss, context."""
    if isinstance(found, Mapping):
        return _as_analyzed(_in_order(found))
    if not isinstance(found, Sequence) or not found:
        raise _NoCaseError(f"got {short(found)}")
    first, *rest = found
    if isinstance(first, Cut) and len(rest) == 3:
        return first.chain, first.params, *rest, first.context
    if isinstance(first, nn.Module) and len(rest) == 4:
        variables, x, *more = rest
        return _as_analyzed((chain_from_linen(first, variables, x), x, *more))
    if isinstance(first, nnx.Module) and len(rest) == 3:
        return _as_analyzed((chain_from_nnx(first, rest[0]), *rest))
    if "equinox" in sys.modules and isinstance(first, sys.modules["equinox"].Module) and len(rest) == 3:
        return _as_analyzed((chain_from_equinox(first, rest[0]), *rest))
    if isinstance(first, Chain) and len(found) in (len(NAMES) - 1, len(NAMES)):
        return tuple(found)
    raise _NoCaseError(f"got {len(found)} values, the first {short(first)}")


def _in_order(found: Mapping[str, Any]) -> tuple[Any, ...]:
    names = NAMES if "model" not in found else LINEN if "variables" in found else MODEL
    wrong = [name for name in found if name not in names] or [
        name for name in names if name not in found and name != "context"
    ]
    if wrong:
        raise _NoCaseError(f"`{wrong[0]}` is {'unknown' if wrong[0] in found else 'missing'}")
    return tuple(found[name] for name in names if name in found)


METHODS = ("Structured", "Dense", "GolubKahan", "Lanczos")
"""By name, with their default settings."""


def listed(text: str) -> list[str]:
    """Words with commas between."""
    return [word.strip() for word in text.split(",") if word.strip()]


def asked_for(
    place: str,
    blocks: str,
    wrt: str,
    part: str,
    samples: int,
    method: str,
    max_seconds: float | None,
    max_bytes: float | None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `lh.analyze`, from words; what is empty is left to it.

    Raises:
        ValueError: A method of another name; as `case_of`.
    """
    if method and method not in METHODS:
        raise ValueError(f"`--method` takes {', '.join(METHODS)}, got {method!r}.")
    told = {"blocks": listed(blocks), "wrt": listed(wrt), "part": listed(part)}
    settings: dict[str, Any] = {name: words for name, words in told.items() if words}
    settings |= {"samples_per_block": samples, "max_seconds": max_seconds, "max_bytes": max_bytes}
    return case_of(place), settings | ({"method": getattr(linalg, method)()} if method else {})


def run_plan(asked: tuple[tuple[Any, ...], dict[str, Any]], *, quiet: bool) -> Plan:
    """As `lh.plan`."""
    return plan(*asked[0], **asked[1], progress=not quiet)


def run_analysis(asked: tuple[tuple[Any, ...], dict[str, Any]], seed: int, path: Path, *, quiet: bool) -> Report:
    """As `lh.analyze`, from where the file of one that was interrupted, or cut short by limits, stopped.

    The report is written as soon as it is there.

    Raises:
        ValueError: The file is that of an interrupted analysis of something else, which would be lost.
    """
    begun = Report.load(path) if path.exists() else None
    begun = begun if begun is not None and unfinished(begun) else None
    run = functools.partial(analyze, *asked[0], **asked[1], key=jax.random.key(seed), progress=not quiet)
    try:
        report = run(resume=begun)
    except AnotherAnalysis as error:
        if begun is not None and begun.meta["interrupted"]:
            raise ValueError(
                f"{path} is an interrupted analysis of another model, data or settings: name another folder by "
                "`--out`, or remove the file."
            ) from error
        report = run()
    report.save(path)
    return report
