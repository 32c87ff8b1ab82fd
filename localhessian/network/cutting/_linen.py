"""Flax linen models as chains."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from localhessian._arguments import expect, expect_key
from localhessian._types import Activations, Context, Params
from localhessian.network._leaves import check_samples
from localhessian.network.cutting._cut import Cut, check_cut, cut_model
from localhessian.network.cutting._submodules import At, Model, Path, Submodule, Wish, call_marked, choose


def chain_from_linen(
    module: Any,
    variables: Mapping[str, Any],
    x: Activations,
    *,
    at: At = None,
    call: Callable[..., Any] | None = None,
    rngs: Mapping[str, Any] | None = None,
    carry: bool = False,
) -> Cut:
    """Cut a flax linen model after named submodules; the model is not edited.

    Parameters are `variables["params"]`; the other collections (running statistics) and the random keys are context,
    and `chain.next_context` returns it with the collections as one forward pass leaves them.

    Args:
        module: An `nn.Module`.
        variables: From `module.init`.
        x: Inputs with the samples on the leading axis.
        at: After which submodules a block ends: a path like `"Dense_0"` or `"encoder.layers_1"`, with `*` for any one
            word or part of it and `**` for any words, a list of these, or `f(path, module) -> bool`. Default: each of
            the outermost layers is a block where that cuts the model (`nn.Sequential` and modules that hold repeated
            blocks count as their items).
        call: `call(module, x)` says how to run the bound module. Default: `module(x)`.
        rngs: Random keys by name, `{"dropout": key}`.
        carry: Whether an activation that jumps over a boundary becomes part of z there; each direction of a layer of
            two (`Bidirectional`) is a block of its own then. Otherwise it is refused.

    Returns:
        `Cut(chain, params, context)`; `chain.split` takes the variables or their `params`, `chain.merge` returns the
        `params`.

    Raises:
        CutError: A boundary asked for does not cut.
        ValueError: `at` matches no submodule.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> from flax import linen as nn
        >>> model, x = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(2)]), jnp.ones((3, 4))
        >>> chain, params, context = lh.chain_from_linen(model, model.init(jax.random.key(0), x), x)
        >>> chain.names
        ('layers_0', 'layers_2')
    """
    from flax import linen as nn  # noqa: PLC0415  only who brings such a model imports it

    expect("module", module, nn.Module, "an `nn.Module` of flax.linen")
    wanted = "what `module.init` returns, a dictionary of collections"
    expect("variables", variables, Mapping, wanted)
    for collection in variables.values():
        expect("variables", collection, Mapping, wanted + ", and a collection")
    expect("rngs", rngs, (Mapping, type(None)), "a dictionary of random keys by name")
    for key in (rngs or {}).values():
        expect_key(key, "rngs")
    check_samples("x", x)
    check_cut(call, carry=carry)
    rest = {name: value for name, value in variables.items() if name != "params"}
    run = call or (lambda module, x: module(x))

    def apply(
        interceptor: Callable[..., Any], params: Params, x: Activations, context: Context
    ) -> tuple[Activations, Context]:
        state = context or {"variables": {}, "rngs": {}}
        with nn.intercept_methods(interceptor):
            out, after = module.apply(
                {"params": params, **state["variables"]}, x, method=run, mutable=list(state["variables"]),
                rngs=dict(state["rngs"]),
            )  # fmt: skip
        return out, context and {"variables": {**state["variables"], **after}, "rngs": state["rngs"]}

    def marked(asked: dict[Path, Wish]) -> Callable[..., Any]:
        def interceptor(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], info: Any) -> Any:
            wish = asked.get(info.module.path) if info.method_name == "__call__" else None
            return call(*args, **kwargs) if wish is None else call_marked(call, wish, args, kwargs)

        return lambda params, x, context: apply(interceptor, params, x, context)

    context = {"variables": rest, "rngs": dict(rngs or {})} if rest or rngs else None
    params = variables.get("params", {})
    modules = _modules(nn, apply, params, x, context)

    def to_params(given: Any) -> Params:
        return given["params"] if isinstance(given, Mapping) and "params" in given else given

    takes = "the variables of the model or their `params`, as dicts or FrozenDicts"
    given_model = Model.of(modules, marked, at, carry=carry), params, x, context, choose(modules, at, carry=carry)
    return cut_model(*given_model, carry=carry, to_params=to_params, takes=takes)


def _modules(nn: Any, apply: Callable[..., Any], params: Params, x: Activations, context: Context) -> list[Submodule]:
    """The modules that a run of the model calls: linen modules exist only while it runs."""
    found: dict[tuple[str, ...], Submodule] = {}
    recurrent = 0

    def note(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], info: Any) -> Any:
        nonlocal recurrent
        module = info.module
        if info.method_name != "__call__":
            return call(*args, **kwargs)
        # The parameters of a recurrent layer are its cell's, which often belongs to the module around both.
        repeats = isinstance(module, nn.RNN | nn.Bidirectional)
        has_params = repeats or bool(module.variables.get("params"))
        is_container = isinstance(module, nn.Sequential)
        forward = module.forward_rnn.path if isinstance(module, nn.Bidirectional) else None
        one = Submodule(module.path, module, has_params, is_container, recurrent > 0, forward)
        found.setdefault(module.path, one)
        recurrent += repeats
        try:
            return call(*args, **kwargs)
        finally:
            recurrent -= repeats

    jax.eval_shape(lambda *arguments: apply(note, *arguments)[0], params, x, context)
    return list(found.values())
