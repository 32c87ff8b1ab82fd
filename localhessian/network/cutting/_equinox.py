"""Equinox models as chains."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from localhessian._arguments import expect
from localhessian._types import Activations, Context, Params
from localhessian.network.cutting._cut import Cut, check_cut, cut_model
from localhessian.network.cutting._submodules import At, Model, Path, Submodule, Wish, choose, marking_class


def chain_from_equinox(
    model: Any,
    x: Activations,
    *,
    at: At = None,
    call: Callable[..., Any] | None = None,
    context: Context = None,
    carry: bool = False,
    has_aux: bool = False,
) -> Cut:
    """Cut an equinox model after named submodules; the model is not edited.

    Parameters are the model's inexact arrays; its other leaves are part of the program.

    Args:
        model: An `eqx.Module`, in the mode that is meant (see `eqx.nn.inference_mode`).
        x: Inputs with the samples on the leading axis.
        at: After which submodules a block ends: a path like `"layers.0"`, with `*` for any one word or part of it and
            `**` for any words, a list of these, or `f(path, module) -> bool`. Default: each of the outermost layers
            is a block where that cuts the model (lists, `eqx.nn.Sequential` and modules that hold repeated blocks count
            as their items).
        call: `call(model, x)`, or `call(model, x, context)` if a context is given, says how to run it on a batch.
            Default: `jax.vmap(model)(x)`.
        context: Keys for dropout, an `eqx.nn.State`: what `call` takes besides.
        carry: Whether an activation that jumps over a boundary becomes part of z there. Otherwise it is refused.
        has_aux: Whether `call` returns `(z_B, next context)`; see `chain.next_context`.

    Returns:
        `Cut(chain, params, context)`; `chain.split` takes the model or its inexact arrays, `chain.merge` returns these
        for `eqx.combine`.

    Raises:
        CutError: A boundary asked for does not cut.
        ValueError: `at` matches no submodule, or a context without a `call` that takes it.

    Example:
        >>> import equinox as eqx
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> model = eqx.nn.MLP(4, 2, width_size=8, depth=1, key=jax.random.key(0))
        >>> chain, params, context = lh.chain_from_equinox(model, jnp.ones((3, 4)))
        >>> chain.names
        ('layers.0', 'layers.1')
    """
    import equinox as eqx  # noqa: PLC0415  optional, and only who brings such a model imports it

    def to_params(params: Any) -> Params:
        return eqx.filter(params, eqx.is_inexact_array)

    modules = [
        Submodule(p, m, bool(jax.tree.leaves(to_params(m))), isinstance(m, eqx.nn.Sequential))
        for p, m in _walk(eqx, model)
    ]
    if not modules:
        expect("model", model, eqx.Module, "an `eqx.Module`")
    check_cut(call, 2 if context is None else 3, carry=carry, has_aux=has_aux)
    if context is not None and call is None:
        raise ValueError("`context` is given: say by `call(model, x, context)` how the model takes it.")
    run: Callable[..., Any] = call or (lambda model, x: jax.vmap(model)(x))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def marked(asked: dict[Path, Wish]) -> Callable[..., Any]:
        def fn(params: Params, x: Activations, context: Context) -> Any:
            copy = eqx.combine(params, static)
            for path, module in list(_walk(eqx, copy)):
                if path in asked:
                    cls: Any = type(module)
                    object.__setattr__(module, "__class__", marking_class(cls, asked[path]))
            return run(copy, x) if context is None else run(copy, x, context)

        return fn

    more: dict[str, Any] = {"takes": "the model, or its inexact arrays", "has_aux": has_aux}
    given = Model.of(modules, marked, at, carry=carry), params, x, context, choose(modules, at)
    return cut_model(*given, carry=carry, to_params=to_params, **more)


def _walk(eqx: Any, node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every module of a model with its path, the model itself first."""
    if isinstance(node, eqx.Module):
        yield path, node
        fields = [f.name for f in dataclasses.fields(node) if not f.metadata.get("static", False)]
        children = [(name, getattr(node, name)) for name in fields]
    elif isinstance(node, (list, tuple)):
        children = [(str(i), child) for i, child in enumerate(node)]
    elif isinstance(node, dict):
        children = [(str(key), child) for key, child in node.items()]
    else:
        return
    for name, child in children:
        yield from _walk(eqx, child, (*path, name))
