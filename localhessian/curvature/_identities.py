"""The identities of the theory, checked on a user's own model by products with random vectors."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from localhessian._arguments import expect, expect_flag, expect_here, expect_key, expect_number
from localhessian._blas import blas_threads
from localhessian._programs import compiled, floating_types
from localhessian._progress import Progress, follow
from localhessian._tree import floating, floating_leaves, ravel
from localhessian._types import Activations, Array, Context, Key, Loss, Params
from localhessian.curvature._local_hessian import local_hessian
from localhessian.curvature._recognize import loss_hessian
from localhessian.linalg import SymmetricOperator, quickly
from localhessian.network import (
    SIDES,
    BackMatching,
    Chain,
    Side,
    back_match,
    back_matching_loss,
    by_sample,
    expect_batch,
)

TOLERANCES = {"float64": 1e-12, "float32": 2.5e-5, "bfloat16": 0.35, "float16": 0.04}
"""Relative, by dtype: the roundings that deep networks and means over a few samples accumulate.

In 16 bits 40 roundings of the largest number (a convolution with batch normalization shows 40 in bfloat16): a rule of
differentiation that is off by its factor still stands out.
"""


class IdentityError(ArithmeticError):
    """An identity of the theory does not hold on a model; the message names the blocks."""


@dataclasses.dataclass(frozen=True, eq=False)
class IdentityCheck:
    """The relative error of every identity on every block."""

    errors: dict[tuple[str, str], float]
    """By (block, identity)."""
    tolerance: float

    @property
    def failures(self) -> dict[tuple[str, str], float]:
        """The errors above the tolerance (or not a number)."""
        return {where: error for where, error in self.errors.items() if not error <= self.tolerance}

    def table(self) -> str:
        """A line for each block and identity."""
        return _lines(self.errors, self.tolerance)

    def __str__(self) -> str:
        """In one line how many hold; a line for each that fails."""
        if self.failures:
            return (
                f"{len(self.failures)} of {len(self.errors)} identities fail (tolerance {self.tolerance:.1e}):\n"
                f"{_lines(self.failures, self.tolerance)}"
            )
        worst = max(self.errors.values(), default=0.0)
        return f"{len(self.errors)} identities hold, worst {worst:.1e} (tolerance {self.tolerance:.1e})"

    def __repr__(self) -> str:
        """How many hold."""
        return f"IdentityCheck({str(self).splitlines()[0].rstrip(':')})"


def _lines(errors: dict[tuple[str, str], float], tolerance: float) -> str:
    width = max(len(block) for block, _ in errors)
    return "\n".join(
        f"{block:{width}}  {error:8.1e}  {'ok  ' if error <= tolerance else 'FAIL'}  {identity}"
        for (block, identity), error in errors.items()
    )


def check_identities(
    chain: Chain,
    params: dict[str, Params],
    x: Activations,
    y: Any,
    loss: Loss,
    context: Context = None,
    *,
    blocks: str | Sequence[str] | None = None,
    tolerance: float | None = None,
    throw: bool = True,
    key: Key | None = None,
    progress: Progress | bool = False,
) -> IdentityCheck:
    """Check on a model of your own that the identities hold which every result of this package rests on.

    By block: the gradient of the back-matching loss is that of back-propagation; displacements are -n dJ/dz; the full
    local Hessian is the Gauss-Newton plus the residual part; the Gauss-Newton part is R^T R, against an assembly from
    scratch; products are symmetric; the H_z of single samples are the diagonal blocks of the batch's (if uncoupled).

    Args:
        chain: The network.
        params: The parameters of each block by its name.
        x: Inputs, samples on the leading axis.
        y: What the loss compares with.
        loss: Per-sample losses, shape `(n,)`.
        context: Handed to every block that takes one.
        blocks: A name or names of the blocks to check; default all.
        tolerance: Relative; default 1e-12 in float64, 2.5e-5 in float32, looser below, by the narrowest type
            that the network computes in.
        throw: Whether to raise when an identity fails.
        key: For the random vectors; default `jax.random.key(0)`.
        progress: True shows a bar; a function is called with (blocks done, blocks in total, what is checked).

    Returns:
        Every relative error; printing tells how many hold, and which do not; `table()` lists all.

    Raises:
        IdentityError: An identity fails; the message lists the blocks. Usually a `jax.custom_jvp` whose rule is not
            the derivative, or a model that overflows.
        ValueError: Bad input, as from `lh.back_match`.
        KeyError: A block name that is not in the chain.

    Cost: some ten gradients of the network.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z @ w)), lh.Block("b", lambda w, z: z @ w)])
        >>> params = {"a": jnp.eye(2), "b": jnp.ones((2, 1))}
        >>> x, y = jnp.array([[1.0, 0.0], [0.5, 2.0]]), jnp.zeros((2, 1))
        >>> lh.check_identities(chain, params, x, y, lambda z, y: ((z - y) ** 2).sum(1)).failures
        {}

    Source: docs/theory.md, 2 and 3.
    """
    expect_key(key)
    expect_flag("throw", throw)
    if tolerance is not None:
        expect_number("tolerance", tolerance)
    expect_batch("check_identities", x)
    expect_here("check_identities", params, x, y, context)
    matching = back_match(chain, params, x, y, loss, context)
    entropy = np.ravel(jax.random.key_data(jax.random.key(0) if key is None else key))
    reference = _back_propagation(chain, matching.loss, matching.params, x, y, matching.context)
    errors: dict[tuple[str, str], float] = {}
    chosen: Any = chain.names if blocks is None else (blocks,) if isinstance(blocks, str) else blocks
    expect("blocks", chosen, Iterable, "a name or names of blocks")
    chosen = tuple(chosen)
    if not chosen:
        raise ValueError("`blocks` names no block, so nothing would be checked: leave it out for all of them.")
    with follow(progress, "block") as show, blas_threads(1):
        for done, name in enumerate(chosen):
            expect("blocks", name, str, "a name or names of blocks, and each")
            show(done, len(chosen), name)
            b = chain.index(name) + 1
            errors |= {(name, identity): error for identity, error in _first_order(matching, name, b, *reference)}
            for side in (kind(matching.kinds[b - 1]) for kind in SIDES.values()):
                if side.variables(matching.place(name))[0]:
                    found = _second_order(matching, name, b, side, np.random.default_rng([*entropy, b]))
                    errors |= {(name, identity): error for identity, error in found}
        show(len(chosen), len(chosen), "done")
    check = IdentityCheck(errors, _tolerance(matching) if tolerance is None else tolerance)
    if throw and check.failures:
        blocks = ", ".join(f"`{name}`" for name in dict.fromkeys(block for block, _ in check.failures))
        raise IdentityError(
            f"identities fail on block {blocks} (tolerance {check.tolerance:.0e}): look for a `jax.custom_jvp` whose "
            f"rule is not the derivative, and for overflow.\n{check}"
        )
    return check


def _tolerance(matching: BackMatching) -> float:
    """Of the narrowest type that a block or the loss computes in, whatever type goes in and comes out."""
    z, types = matching.activations, set()
    for block, before in zip(matching.chain.blocks, z, strict=False):
        types |= set(floating_types(jax.make_jaxpr(block)(matching.params[block.name], before, matching.context)))
    types |= set(floating_types(jax.make_jaxpr(matching.loss)(z[-1], matching.y)))
    types |= {leaf.dtype for leaf in floating_leaves((matching.params, z))}
    return max(TOLERANCES[jnp.dtype(dtype).name] for dtype in types)


@quickly(static_argnums=(0, 1), once=True)
def _back_propagation(chain: Chain, loss: Loss, params: Any, x: Any, y: Any, context: Any) -> Any:
    """dJ/dW by plain reverse mode, and dJ/dz_b as the gradient by a perturbation added to z_b."""
    activations = chain.forward(params, x, context)
    shifts = [jax.tree.map(jnp.zeros_like, floating_leaves(z)) for z in activations]
    weights, rebuild = floating(params)

    def objective(weights: Any, shifts: Any) -> Any:
        z, given = x, rebuild(weights)
        for b, block in enumerate(chain.blocks):
            leaves, refill = floating(z)
            z = block(given[block.name], refill([a + s for a, s in zip(leaves, shifts[b], strict=True)]), context)
        leaves, refill = floating(z)
        return loss(refill([a + s for a, s in zip(leaves, shifts[-1], strict=True)]), y).mean()

    for_weights, for_shifts = jax.grad(objective, argnums=(0, 1))(weights, shifts)
    gradients = floating(jax.tree.map(jnp.zeros_like, params))[1](for_weights)
    return gradients, for_shifts


def _first_order(matching: BackMatching, name: str, b: int, gradients: Any, shifts: Any) -> Any:
    weights = floating_leaves(matching.params[name])
    if weights:
        loss = back_matching_loss(matching, name)
        literal = _gradient(loss, matching.params[name], matching.activations[b - 1])
        truth = floating_leaves(gradients[name])
        yield (
            "dl_b/dW = dJ/dW",
            max(_distance(literal, truth), _distance(floating_leaves(matching.gradients[name]), truth)),
        )
    if b < len(matching.chain):
        step = [-matching.samples * np.asarray(leaf) for leaf in shifts[b]]
        yield "delta_b = -n dJ/dz_b", _distance(floating_leaves(matching.displacements[b]), step)


@quickly(once=True)
def _gradient(loss: Loss, params: Any, z: Any) -> Any:
    weights, rebuild = floating(params)
    return jax.grad(lambda leaves: loss(rebuild(leaves), z))(weights)


def _second_order(matching: BackMatching, name: str, b: int, side: Side, random: np.random.Generator) -> Any:
    symbol = side.symbol
    full, residual = (local_hessian(matching, name, side.wrt, part) for part in ("full", "residual"))
    gauss_newton = local_hessian(matching, name, side.wrt, "gauss_newton")
    u, v = jax.device_put(list(random.standard_normal((2, full.size)).astype(full.dtype)))
    gauss_newton_v = gauss_newton.mv(v)
    unlabelled = [dataclasses.replace(operator, label="") for operator in (full, residual)]
    (fv, fu), residual_v = _products(unlabelled[0], unlabelled[1], u, v)
    parts, fv, fu = [_host([gauss_newton_v]), _host([residual_v])], _host([fv]), _host([fu])
    scale = max(_norm(fv), *(_norm(part) for part in parts))
    yield f"{symbol}: full = Gauss-Newton + residual", _ratio(_norm(fv - parts[0] - parts[1]), scale)
    product = abs(float(_host([u]) @ fv - _host([v]) @ fu))
    yield f"{symbol}: <u, H v> = <v, H u>", _ratio(product, _norm(_host([u])) * scale)
    if gauss_newton.factor is not None:
        truth = _from_scratch(matching, name, b, side, v)
        yield f"{symbol}: Gauss-Newton = R^T R", _distance([gauss_newton_v], [truth])
    if side.per_sample and not bool(matching.coupled[name]):
        yield "H_z: samples are the diagonal blocks", _per_sample(matching, name, b, v, gauss_newton_v)


@compiled(once=True)
def _products(full: SymmetricOperator, residual: SymmetricOperator, u: Array, v: Array) -> Any:
    """Full products of v and u, the residual one of v: in one program."""
    return [full.mv(v), full.mv(u)], residual.mv(v)


def _from_scratch(matching: BackMatching, name: str, b: int, side: Side, v: Array) -> ArrayLike:
    """scale J^T S J v by a plain jvp and vjp, with S by differentiating the loss."""
    loss = matching.loss if b == len(matching.chain) else None
    arguments = (matching.params[name], matching.activations[b - 1])
    varied = 1 if side.per_sample else 0
    product = _assemble(side.block, loss, varied, arguments, matching.context, matching.y, v)
    return product if side.per_sample else np.asarray(product) / matching.samples


@quickly(static_argnums=(0, 1, 2), once=True)
def _assemble(
    block: Callable[..., Any], loss: Loss | None, varied: int, arguments: Any, context: Any, y: Any, v: Any
) -> Any:
    leaves, rebuild = floating(arguments[varied])
    unravel = ravel(leaves)[1]

    def outputs(leaves: Any) -> Any:
        return floating_leaves(block(*arguments[:varied], rebuild(leaves), *arguments[varied + 1 :], context))

    _, moved = jax.jvp(outputs, (leaves,), (unravel(v),))
    if loss is not None:
        moved = loss_hessian(loss, block(*arguments, context), y)(moved)
    return ravel(jax.vjp(outputs, leaves)[1](moved)[0])[0]


def _per_sample(matching: BackMatching, name: str, b: int, v: ArrayLike, whole: ArrayLike) -> float:
    rows = local_hessian(matching, name, "input", samples=range(matching.samples))
    v, whole = (by_sample(vector, floating_leaves(matching.activations[b - 1])) for vector in (v, whole))
    return _distance([rows.mv(jax.device_put(v))], [whole])


def _distance(ours: Sequence[ArrayLike], truth: Sequence[ArrayLike]) -> float:
    """||ours - truth|| / ||truth|| over all leaves, on the host in float64 (nothing to compile, no underflow)."""
    one, two = _host(ours), _host(truth)
    return _ratio(_norm(one - two), _norm(two))


def _host(leaves: Sequence[ArrayLike]) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).astype(np.float64).ravel() for leaf in leaves])


def _norm(vector: np.ndarray) -> float:
    largest = float(np.max(np.abs(vector)))
    return largest * float(np.linalg.norm(vector / largest)) if largest > 0 else largest


def _ratio(error: float, scale: float) -> float:
    return error / scale if scale > 0 else error
