"""Cutting any JAX function into a Chain at its marks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from localhessian._arguments import expect_choice, expect_flag, expect_function, short
from localhessian._brief import by_value
from localhessian._types import Activations, Context, Params
from localhessian.network._chain import Block, Chain, _takes_context, check_params
from localhessian.network._describe import table
from localhessian.network.cutting import _layout
from localhessian.network.cutting._scopes import marked_at_scopes, scopes_of
from localhessian.network.cutting._source import Source
from localhessian.network.cutting._submodules import At, Model, Path, Wish, check_called


@by_value
class Cut(NamedTuple):
    """A model as a chain: `chain, params, context = lh.chain_from_...(...)`.

    Attributes:
        chain: The blocks.
        params: The parameters of each block by its name.
        context: What the blocks take besides: the context given (`context.given`), what later blocks need of the input,
            and for which shapes that was derived.
    """

    chain: "TracedChain"
    params: dict[str, Params]
    context: Context


@dataclass(frozen=True, init=False, repr=False)
class TracedChain(Chain):
    """A Chain cut from a function. It keeps the function, and cuts it again for inputs of another shape."""

    source: Source = field(repr=False)

    def __init__(self, source: Source) -> None:
        """One block for each piece; blocks that compute the same share one `apply`."""
        super().__init__([Block(name, apply) for name, apply in source.applies().items()])
        object.__setattr__(self, "source", source)

    def context_for(self, x: Activations, context: Context = None, params: dict[str, Params] | None = None) -> Context:
        """The context of the blocks for the inputs x: the one given, and what later blocks need of x itself.

        Masks or position tables that a model computes from its input belong to that input, and so does the program of
        every block, which is specialized to shapes; a new batch needs them anew. Applied to its own result it gives it
        again, computed from the x at hand. A block on its own refuses a context that was derived for other shapes.

        Args:
            x: The inputs of the chain.
            context: What the user gave, or an earlier result of this.
            params: The parameters of the blocks, for their types. Default: those of the model that was cut, in another
                precision if x is.
        """
        if params is not None:
            check_params("params", params, self)
        return self.source.context_for(x, context, params)

    def forward(self, params: dict[str, Params], x: Activations, context: Context = None) -> tuple[Activations, ...]:
        """The activations (z_0, .., z_B), as `Chain.forward`; what blocks need of x is computed from this x."""
        check_params("params", params, self)
        return super().forward(params, x, self.context_for(x, context, params))

    def describe(self, params: dict[str, Params] | None = None, x: Activations = None, context: Context = None) -> str:
        """A table of the blocks, as `Chain.describe`; what is left out is as the model was cut for."""
        given = self.source.example()
        params, x, context = (
            shown if asked is None else asked for asked, shown in zip((params, x, context), given, strict=True)
        )
        check_params("params", params, self)
        return table(self, params, x, context, self.source.uses(), self.source.notes)

    def split(self, model_params: Params) -> dict[str, Params]:
        """The parameters of each block, out of those of the model; a tied array goes to every block that uses it."""
        return self.source.split(model_params)

    def merge(self, block_params: dict[str, Params], *, tied: str = "owner", like: Params = None) -> Params:
        """The parameters of the model, out of those of the blocks.

        Args:
            block_params: As `split` returns them.
            tied: Of an array that several blocks use, `"owner"` takes the first block's; `"sum"` adds them all: that
                is right for gradients and updates.
            like: Parameters of the model, for arrays that no block uses (under `"sum"` these are zero).

        Raises:
            ValueError: An array is in no block, and `like` is missing.
        """
        expect_choice("tied", tied, ("owner", "sum"))
        check_params("block_params", block_params, self)
        return self.source.merge(block_params, tied, like)

    def has_layout_of_model(self, tree: Params) -> bool:
        """Whether a tree holds the parameters of the model by their names, in whatever containers."""
        return self.source.has_names(0, self.source.to_params(tree))

    def sum_tied(self, of_blocks: dict[str, Params]) -> dict[str, Params]:
        """Gradients or steps of the blocks, with the sum over its uses at each use of an array of the model.

        The uses of a tied array then move alike, and `merge` loses nothing.
        """
        check_params("of_blocks", of_blocks, self)
        return {**of_blocks, **_layout.sum_tied(self.source.trees(), of_blocks)}

    def check_tied(self, params: dict[str, Params]) -> None:
        """Refuse parameters in which the uses of one array of the model hold different values; needs numbers.

        Raises:
            ValueError: They differ; the message names the array and the blocks.
        """
        check_params("params", params, self)
        _layout.check_tied(self.source.trees(), params)

    def next_context(self, params: dict[str, Params], x: Activations, context: Context = None) -> Context:
        """The context after a forward pass: running statistics and random counts moved on. Cost: one forward pass.

        It is of the same form as `context_for` returns; its `.given` is in the form that the user gave.
        """
        check_params("params", params, self)
        return self.source.next_context(params, x, context)


def chain_from_function(
    fn: Callable[..., Any],
    params: Params,
    x: Activations,
    context: Context = None,
    *,
    at: At = None,
    carry: bool = False,
    has_aux: bool = False,
) -> Cut:
    """Cut a function into a chain at its marks, or at its `jax.named_scope`s.

    The function is traced once for the shapes given, and again by itself when the chain meets new ones. Each block
    takes the parameters that its own equations use, keyed by their paths without the common prefix; an array used by
    two blocks is in both. What is computed from the context (keys, position tables) is computed again in each block
    that uses it; what later blocks compute from `x` alone (masks) is handed to them as context. Marks inside `jit`,
    `jax.checkpoint` and `lax.scan` over layers are found; such a scan is cut between its iterations.

    Args:
        fn: `fn(params, x)`, or `fn(params, x, context)`: returns z_B, usually logits.
        params: Any pytree of floating-point arrays.
        x: Inputs with the samples on the leading axis. Only the shapes count, besides what goes into `context`.
        context: Everything else, a pytree of arrays: masks, random keys, running statistics.
        at: After which `jax.named_scope`s a block ends, beside its marks: a path like `"encoder.layer_0"`, with `*` for
            any one word or part of it and `**` for any words, a list of these, or `f(path, words) -> bool`. Haiku's and
            many other libraries' layers are scopes. Default: at the marks only.
        carry: Whether an activation that jumps over a boundary becomes part of z there. Otherwise it is refused.
        has_aux: Whether `fn` returns `(z_B, next context)`; see `chain.next_context`.

    Returns:
        `Cut(chain, params, context)`. Cost: one trace, nothing is computed but what goes into the context.

    Raises:
        CutError: A mark does not cut; the message names the value that jumps over it and where it is made and used.
        TypeError: `fn` is no function.
        ValueError: No marks, no scope as asked for, or parameters that are not floating-point.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> def network(params, x):
        ...     h = lh.mark(jnp.tanh(x @ params["hidden"]["kernel"]), "hidden")
        ...     return h @ params["head"]["kernel"]
        >>> params = {"hidden": {"kernel": jnp.ones((2, 3))}, "head": {"kernel": jnp.ones((3, 1))}}
        >>> chain, block_params, context = lh.chain_from_function(network, params, jnp.ones((5, 2)))
        >>> {name: sorted(p) for name, p in block_params.items()}
        {'hidden': ['kernel'], 'output': ['kernel']}
    """
    expect_function("fn", fn, "a function of (params, x)")
    three = _takes_context(fn)
    expect_function("fn", fn, "a function of (params, x)", takes=3 if three else 2)
    check_cut(carry=carry, has_aux=has_aux)
    if context is not None and not three:
        raise ValueError("`context` is given, but `fn` takes only (params, x): let it take (params, x, context).")
    whole: Callable[..., Any] = fn if three else lambda p, x, _: fn(p, x)
    cut = whole if at is None else marked_at_scopes(whole, at, params, x, context)
    source = Source(fn=cut, params=params, x=x, context=context, carry=carry, has_aux=has_aux)
    if [piece.name for piece in source.program.pieces] == ["output"]:
        scopes = sorted({path[0] for path in scopes_of(whole, params, x, context)})
        more = f", or `at=` one or more of its scopes {', '.join(map(repr, scopes))}" if scopes else ""
        raise ValueError(
            '`fn` holds no marks, so there is nothing to cut at: write `h = lh.mark(h, "name")` where a block ends'
            f"{more}."
        )
    return cut_of(source, params, x, context)


def check_cut(call: Callable[..., Any] | None = None, takes: int = 2, **flags: bool) -> None:
    """Refuse a way to call that is none, and flags that are neither True nor False."""
    if call is not None:
        expect_function("call", call, "a function that runs a model", takes)
    for name, flag in flags.items():
        expect_flag(name, flag)


def cut_of(source: Source, params: Params, x: Activations, context: Context) -> Cut:
    """The chain of a source with the parameters and the context it was made from."""
    chain = TracedChain(source)
    return Cut(chain, chain.split(params), chain.context_for(x, context))


def cut_model(
    model: Model,
    params: Params,
    x: Activations,
    context: Context,
    asked: dict[Path, Wish],
    *,
    carry: bool,
    to_params: Callable[..., Any],
    takes: str,
    has_aux: bool = True,
) -> Cut:
    """The chain of a model whose submodules `asked` mark what goes through them."""
    source = Source(
        fn=model.marked(asked),
        params=params,
        x=x,
        context=context,
        model=model,
        carry=carry,
        has_aux=has_aux,
        to_params=to_params,
        takes=takes,
        first=next(iter(asked.values())).name if len(asked) == 1 else "model",
    )
    check_called(asked, source.program.marks)
    return cut_of(source, params, x, context)


def in_blocks(chain: Chain, tree: Any, name: str = "params") -> bool:
    """Whether parameters or gradients are in the layout of the blocks (else of the model); ValueError if in neither."""
    if isinstance(chain, TracedChain) and chain.has_layout_of_model(tree):
        return False
    if isinstance(tree, Mapping) and set(tree) <= set(chain.names):
        return True
    more = (
        ", or be in the layout of the model"
        if isinstance(chain, TracedChain)
        else (": only a chain that was cut from a model knows another layout")
    )
    raise ValueError(
        f"gradients and parameters must be a dict of the blocks' names ({', '.join(chain.names)}){more}: got "
        f"{short(tree)} as `{name}`."
    )


def by_block(chain: Chain, params: Any) -> dict[str, Params]:
    """The parameters of each block by its name, from either layout; raises as `in_blocks`."""
    return params if in_blocks(chain, params) else cast(TracedChain, chain).split(params)
