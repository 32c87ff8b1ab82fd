"""Flax nnx models as chains."""

from collections.abc import Callable
from typing import Any

import jax

from localhessian._arguments import expect
from localhessian._types import Activations, Context, Params
from localhessian.network.cutting._cut import Cut, check_cut, cut_model
from localhessian.network.cutting._submodules import At, Model, Path, Submodule, Wish, choose, marking_class


def chain_from_nnx(
    model: Any, x: Activations, *, at: At = None, call: Callable[..., Any] | None = None, carry: bool = False
) -> Cut:
    """Cut a flax nnx model after named submodules; the model is not edited.

    Parameters are the model's `nnx.Param`; everything else it holds (running statistics, random keys and counts) is
    context, and `chain.next_context` returns it as one forward pass leaves it.

    Args:
        model: An `nnx.Module`, in the mode that is meant: `model.train()` couples the samples where it normalizes over
            the batch, `model.eval()` uses running statistics and no dropout.
        x: Inputs with the samples on the leading axis.
        at: After which submodules a block ends: a path like `"layers.0"`, with `*` for any one word or part of it and
            `**` for any words, a list of these, or `f(path, module) -> bool`. Default: each of the outermost layers
            is a block where that cuts the model (lists, `nnx.Sequential` and modules that hold repeated blocks count as
            their items).
        call: `call(model, x)` says how to run it. Default: `model(x)`.
        carry: Whether an activation that jumps over a boundary becomes part of z there; each direction of a layer of
            two (`Bidirectional`) is a block of its own then. Otherwise it is refused.

    Returns:
        `Cut(chain, params, context)`; `chain.split` takes the model, its `nnx.State`, or a dict of its parameters;
        `chain.merge` returns an `nnx.State` for `nnx.update`.

    Raises:
        CutError: A boundary asked for does not cut.
        ValueError: `at` matches no submodule.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.tanh, nnx.Linear(8, 2, rngs=rngs))
        >>> chain, params, context = lh.chain_from_nnx(model, jnp.ones((3, 4)))
        >>> chain.names
        ('layers.0', 'layers.2')
    """
    from flax import nnx  # noqa: PLC0415  only who brings such a model imports it

    expect("model", model, nnx.Module, "an `nnx.Module`")
    check_cut(call, carry=carry)
    graph, params, state = nnx.split(model, nnx.Param, ...)
    modules = _modules(nnx, model)
    run = call or (lambda model, x: model(x))

    def marked(asked: dict[Path, Wish]) -> Callable[..., Any]:
        def fn(params: Params, x: Activations, state: Context) -> tuple[Activations, Context]:
            copy = nnx.merge(graph, _fresh(params), nnx.State({}) if state is None else _fresh(state))
            for path, module in list(nnx.iter_modules(copy)):
                wish = asked.get(tuple(map(str, path)))
                if wish is not None:
                    cls: Any = type(module)
                    object.__setattr__(module, "__class__", marking_class(cls, wish))
            out = run(copy, x)
            return out, None if state is None else _like(nnx, state, nnx.state(copy))

        return fn

    def to_params(params: Any) -> Params:
        if isinstance(params, nnx.State):  # gradients come in one without variables
            return nnx.filter_state(
                params, lambda _, leaf: isinstance(leaf, nnx.Param) or not isinstance(leaf, nnx.Variable)
            )
        return nnx.state(params, nnx.Param) if isinstance(params, nnx.Module) else params

    context = _fresh(state) if len(nnx.to_flat_state(state)) else None
    takes = "the model, its `nnx.State`, or a dict of its `nnx.Param`s"
    given = Model.of(modules, marked, at, carry=carry), params, x, context, choose(modules, at, carry=carry)
    return cut_model(*given, carry=carry, to_params=to_params, takes=takes)


def _fresh(state: Any) -> Any:
    """The same arrays in new variables: those of a state belong to its model and change as it runs."""
    return jax.tree.map(lambda leaf: leaf, state)


def _modules(nnx: Any, model: Any) -> list[Submodule]:
    containers = (nnx.Sequential, nnx.List, nnx.Dict)
    return [
        Submodule(
            path=tuple(map(str, path)),
            module=module,
            has_params=len(nnx.to_flat_state(nnx.state(module, nnx.Param))) > 0,
            is_container=isinstance(module, containers),
            forward=(*map(str, path), "forward_rnn") if isinstance(module, nnx.Bidirectional) else None,
        )
        for path, module in nnx.iter_modules(model)
    ]


def _like(nnx: Any, state: Any, after: Any) -> Any:
    """The variables of `state` as they are in `after`, which may have gained some (sown intermediates)."""
    now = dict(nnx.to_flat_state(after))
    return nnx.from_flat_state([(path, now[path]) for path, _ in nnx.to_flat_state(state)])
