"""Networks as chains of blocks: z_b = F_b(W_b, z_{b-1}), b = 1..B."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from localhessian._arguments import expect, short
from localhessian._brief import brief, named, wrapped
from localhessian._memory import as_key
from localhessian._types import Activations, Context, Params
from localhessian.network._describe import table
from localhessian.network._leaves import check_arrays


@dataclasses.dataclass(frozen=True)
class Block:
    """One differentiable map z_b = F_b(W_b, z_{b-1}) of a chain.

    A skip connection inside a block is fine: `apply` may return `z + phi(params, z)`. Blocks of one chain that compute
    the same from the same shapes share their compiled programs, whether or not they share one `apply`.

    Args:
        name: Unique in its chain; the key of the block's parameters.
        apply: `apply(params, z)`, or `apply(params, z, context)` if it takes three arguments. `z` and what it returns
            are pytrees of arrays with the samples on the leading axis; `params` is any pytree of arrays (`()` or `{}`
            for none). `context` is everything that is neither: batch statistics, masks, random keys, frozen weights.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> lh.Block("hidden", lambda params, z: jnp.tanh(z @ params["kernel"]))  # doctest: +ELLIPSIS
        Block(name='hidden', ...)
    """

    name: str
    apply: Callable[..., Any]
    takes_context: bool = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read from the signature whether `apply` takes a context."""
        expect("name", self.name, str, "the name of a block")
        if isinstance(self.apply, type) or not callable(self.apply):
            raise TypeError(f"block `{self.name}`: `apply` must be a function, got {short(self.apply)}.")
        object.__setattr__(self, "takes_context", _takes_context(self.apply))
        object.__setattr__(self, "apply", as_key(self.apply, f"block `{self.name}`: `apply`"))

    __repr__ = brief

    @functools.cached_property
    def anonymous(self) -> "Block":
        """The block without its name: equal for blocks that share `apply`, so they share compiled programs."""
        return dataclasses.replace(self, name="")

    def __call__(self, params: Params, z: Activations, context: Context = None) -> Activations:
        """F_b(W_b, z_{b-1}), with the context if the block takes one."""
        return self.apply(params, z, context) if self.takes_context else self.apply(params, z)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A network as a chain of blocks: static, hashable, without parameters of its own.

    Args:
        blocks: In the order of the forward pass; names must differ.

    Raises:
        ValueError: No block, or two blocks of one name.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([
        ...     lh.Block("hidden", lambda w, z: jnp.tanh(z @ w)),
        ...     lh.Block("head", lambda w, z: z @ w),
        ... ])
        >>> params = {"hidden": jnp.ones((2, 3)), "head": jnp.ones((3, 1))}
        >>> [z.shape for z in chain.forward(params, jnp.ones((5, 2)))]
        [(5, 2), (5, 3), (5, 1)]
    """

    blocks: tuple[Block, ...]

    def __init__(self, blocks: Iterable[Block]) -> None:
        """Check that there are blocks and that their names differ."""
        expect("blocks", blocks, Iterable, "a list of blocks (`lh.Block`)")
        object.__setattr__(self, "blocks", tuple(blocks))
        for block in self.blocks:
            expect("blocks", block, Block, "a list of blocks (`lh.Block`), and an entry")
        names = self.names
        if not names:
            raise ValueError("a `Chain` needs at least one block.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"block names must differ, but {_list(twice)} occurs more than once: rename the blocks.")

    def __repr__(self) -> str:
        """Its blocks by name."""
        return wrapped(f"{type(self).__name__}({len(self.blocks)} blocks: {named(self.names)})")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the blocks, in the order of the forward pass."""
        return tuple(block.name for block in self.blocks)

    def __len__(self) -> int:
        """The number of blocks B."""
        return len(self.blocks)

    def index(self, name: str) -> int:
        """The position (from 0) of a block.

        Raises:
            UnknownBlock: No block has that name (a KeyError); the message suggests the nearest.
        """
        asked: Any = name
        if isinstance(asked, str) and asked in self.names:
            return self.names.index(asked)
        raise UnknownBlock(name, self.names)

    def context_for(self, x: Activations, context: Context = None, params: dict[str, Params] | None = None) -> Context:
        """What the blocks take as context for the inputs x: of a chain written by hand, the context as it is."""
        del x, params
        return context

    def sum_tied(self, of_blocks: dict[str, Params]) -> dict[str, Params]:
        """Gradients or steps of the blocks, with the sum over its uses at each use of an array of the model.

        A chain written by hand knows of no such arrays: what comes in goes out.
        """
        return of_blocks

    def check_tied(self, params: dict[str, Params]) -> None:
        """Refuse parameters in which the uses of one array of the model hold different values; needs numbers."""

    def forward(self, params: dict[str, Params], x: Activations, context: Context = None) -> tuple[Activations, ...]:
        """The activations (z_0, .., z_B) with z_0 = x.

        Args:
            params: The parameters of each block by its name; a block without parameters may be left out.
            x: The inputs, a pytree of arrays with the samples on the leading axis.
            context: Handed to every block that takes one.

        Returns:
            B + 1 pytrees. Cost: one forward pass.
        """
        check_params("params", params, self)
        check_arrays("`x`", x)
        activations = [x]
        for block in self.blocks:
            activations.append(block(params.get(block.name, ()), activations[-1], context))
        return tuple(activations)

    def describe(self, params: dict[str, Params], x: Activations, context: Context = None) -> str:
        """A table of the blocks: shapes going in and out, number of parameters, who takes context.

        Args:
            params: The parameters of each block by its name; only shapes are used.
            x: The inputs; only shapes are used.
            context: Handed to every block that takes one.

        Returns:
            Text for `print`. Nothing is computed.
        """
        check_params("params", params, self)
        return table(self, params, x, context, {block.name: "yes" for block in self.blocks if block.takes_context})


def check_chain(chain: Any, params: Any = None) -> None:
    """Refuse what is no chain (TypeError), and say so where it changed places with the parameters."""
    wanted = "a chain, as `lh.Chain` and `lh.chain_from_nnx` give one (the first argument)"
    if isinstance(params, Chain) and not isinstance(chain, Chain):
        raise TypeError(f"`chain` must be {wanted}, got {short(chain)}; `params` is one: swap the two.")
    expect("chain", chain, Chain, wanted)


def check_params(name: str, value: Any, chain: Chain) -> None:
    """Refuse what is no dictionary (TypeError), and names that are no blocks of the chain (`UnknownBlock`)."""
    expect(name, value, Mapping, "a dictionary with the parameters of each block by its name")
    for block in value:
        chain.index(block)


class UnknownBlock(KeyError):
    """A block name that is not in the chain; the message suggests the nearest."""

    def __init__(self, name: Any, names: tuple[str, ...]) -> None:
        """Word the sentence from the name asked for and the names there are."""
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        name = name if isinstance(name, str) else short(name).replace("`", "")
        super().__init__(f"there is no block `{name}` in this chain.{hint} Its blocks are {_list(names)}.")

    def __str__(self) -> str:
        """The sentence without the quotes that KeyError adds."""
        return str(self.args[0])


def _takes_context(function: Callable[..., Any]) -> bool:
    """Three arguments must be given, or the third is called `context`; `lambda w, z, i=i: ...` binds, it takes none."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    third = positional[2:3]
    return bool(third) and (third[0].default is inspect.Parameter.empty or third[0].name == "context")


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
