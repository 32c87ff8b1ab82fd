"""Algorithms by name."""

import functools
import re
from collections.abc import Callable

import optax

from localhessian.lab.comparison._algorithm import Algorithm, Descent
from localhessian.lab.comparison._propagation import Propagation
from localhessian.training import GaussNewton, GradientStep, scale_amended_sgd

DEFAULT_ALGORITHMS = ("momentum", "adam", "scale-amended", "back-matching")
"""What is compared if nothing else is said."""
_DECADES = 4.0
"""Every named algorithm searches its learning rate over as many decades, so that no grid is finer than another."""
_GRID_TOP = {
    "adabelief": 0.1,
    "adam": 0.1,
    "adamax": 0.1,
    "adamw": 0.1,
    "lion": 0.01,
    "nadam": 0.1,
    "radam": 0.1,
    "rmsprop": 0.1,
    "scale-amended-max": 1.0,
    "scale-amended-range-mean": 1.0,
}
"""Upper end of the grid; 10 for every name that is not here. Heuristic: their usual rates lie in the middle.

Of SGD in its forms on the digits (tanh-2, batchnorm; 150 steps): 0.01 to 1 is best, 0.01 with `range_mean` and `max`.
"""
_MOMENTUM = 0.9
_SCALE_AMENDED = re.compile(r"scale-amended(?:-(mean|range-mean|max))?(-no-momentum)?")
"""The scalar, `mean` if none is named, and whether there is momentum."""
ITERATIONS = 5
"""Of conjugate gradients in each block of `gauss-newton`."""


@functools.lru_cache
def algorithm(name: str) -> Algorithm:
    """An algorithm by name.

    Args:
        name: `momentum` (SGD with momentum 0.9); `scale-amended` (the same on gradients scaled by
            `lh.scale_by_local_hessian`, with the scalar `mean`), `scale-amended-range-mean` and `scale-amended-max`
            (with these scalars), each also without momentum, as in `scale-amended-no-momentum` (to be compared with
            `sgd`) and `scale-amended-max-no-momentum`; `gauss-newton` (back-matching propagation, each block's weights
            by damped Gauss-Newton steps, whose learning rate is 1 / damping, inputs by unit gradient steps);
            `back-matching` (the same with Gauss-Newton steps of damping 0.1 for the inputs as well); or the name of an
            optax optimizer that takes a learning rate: `sgd`, `adam`, `adamw`, `rmsprop`, ...

    Returns:
        With a grid of learning rates over four decades around the usual ones.

    Raises:
        ValueError: There is none of that name.

    Example:
        >>> from localhessian.lab import algorithm
        >>> algorithm("adam").grid[1]
        0.1
    """
    top = _GRID_TOP.get(name, 10.0)
    grid = (top / 10**_DECADES, top)
    if name == "momentum":
        return Descent(name, lambda chain, loss, rate: optax.sgd(rate, momentum=_MOMENTUM), grid)
    if amended := _SCALE_AMENDED.fullmatch(name):
        scalar, without = (amended[1] or "mean").replace("-", "_"), amended[2]
        momentum = None if without else _MOMENTUM
        amend = functools.partial(scale_amended_sgd, momentum=momentum, scalar=scalar, per_sample=_is_label)
        return Descent(name, amend, grid)
    if name == "gauss-newton":
        return Propagation(name, _damped, GradientStep(1.0), grid)
    if name == "back-matching":
        return Propagation(name, _damped, GaussNewton(damping=0.1, iterations=ITERATIONS), grid)
    factory = getattr(optax, name, None)
    if not callable(factory) or name.startswith("_") or not _is_optimizer(factory):
        raise ValueError(
            f"there is no algorithm {name!r}: use `momentum`, `scale-amended` (`-range-mean`, `-max`; `-no-momentum` "
            "behind), `gauss-newton`, `back-matching`, or an optax optimizer that needs a learning rate only, such as "
            "`sgd` or `adam`; or make a `Descent` or a `Propagation` of your own."
        )
    return Descent(name, lambda chain, loss, rate: factory(learning_rate=rate), grid)


def _is_label(path: str) -> bool:
    """Labels belong to the samples; the context of a `Network` goes from batch to batch, so nothing of it does."""
    return path.startswith("y")


def _damped(rate: float) -> GaussNewton:
    return GaussNewton(damping=1 / rate, iterations=ITERATIONS)


def _is_optimizer(factory: Callable) -> bool:
    try:
        return isinstance(factory(learning_rate=1.0), optax.GradientTransformation)
    except TypeError:
        return False
