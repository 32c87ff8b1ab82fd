"""A function cut for one set of shapes, and the key by which it is found again."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from localhessian import _programs
from localhessian._programs import Text, compiled, run
from localhessian._types import Array
from localhessian.network.cutting import _graph, _layout

Shapes = tuple[jax.ShapeDtypeStruct, ...]


class Settings(NamedTuple):
    """Of JAX, as they go into a program when it is traced."""

    matmul_precision: str | None
    x64: bool

    @classmethod
    def now(cls) -> "Settings":
        """Those in force here."""
        config: Any = jax.config
        return cls(config.jax_default_matmul_precision, config.jax_enable_x64)

    @contextmanager
    def again(self) -> Iterator[None]:
        """As if they were in force."""
        with jax.default_matmul_precision(self.matmul_precision), jax.enable_x64(self.x64):
            yield


class Key(NamedTuple):
    """Shape and type of every leaf of the model's parameters, of x and of the context: what a program is cut for."""

    settings: Settings
    params: tuple[Any, ...]
    inputs: tuple[Any, ...]
    context: tuple[Any, ...]


@dataclass(frozen=True)
class Program:
    """A function cut for one set of shapes."""

    key: Key
    output: Any
    slots: tuple[_layout.Slot, ...]
    pieces: tuple[_graph.Piece, ...]
    hoist: _programs.Program
    marks: tuple[str, ...]

    @functools.cached_property
    def trees(self) -> tuple[dict[str, Any], ...]:
        """The slots of each block in the layout of its parameters."""
        return tuple(_layout.nested([self.slots[i] for i in piece.params]) for piece in self.pieces)

    @functools.cached_property
    def derive(self) -> Callable[..., Sequence[Array]]:
        """What later blocks take, of the leaves of x and of the context: one program, if there is any to run."""
        hoist = functools.partial(run, self.hoist)
        return compiled(hoist) if self.hoist.jaxpr.eqns else hoist

    @property
    def layout(self) -> Any:
        """What all programs of one chain have in common: blocks, their parameters, the structure of z."""
        return [
            (piece.name, tree, self.returns(b))
            for b, (piece, tree) in enumerate(zip(self.pieces, self.trees, strict=True))
        ]

    @functools.cached_property
    def firsts(self) -> tuple[int, ...]:
        """Of each block the first that computes the same from parameters of the same structure."""
        found: list[int] = []
        for b in range(len(self.pieces)):
            found.append(next((a for a in dict.fromkeys(found) if self.are_equal((a, b))), b))
        return tuple(found)

    def are_equal(self, blocks: Sequence[int]) -> bool:
        """Whether blocks compute the same, also when differentiated: of that a trace each, where they have rules."""
        first = self.texts[blocks[0]]
        return all(self.texts[b] == first for b in blocks)

    @functools.cached_property
    def texts(self) -> tuple[Text, ...]:
        """Of each block."""
        return tuple(
            Text(
                piece.program,
                (jax.tree.structure(tree), self.order(b), piece.context, piece.derived, piece.n_z, self.returns(b)),
            )
            for b, (piece, tree) in enumerate(zip(self.pieces, self.trees, strict=True))
        )

    def returns(self, b: int) -> Any:
        """The structure of z_b: of the last block the user's, else one array or a flat tuple."""
        n = len(self.pieces[b].program.out_avals)
        inner = jax.tree.structure(0 if n == 1 else (0,) * n)
        return self.output if b == len(self.pieces) - 1 else inner

    def order(self, b: int) -> tuple[int, ...]:
        """Where each parameter of block b, in the order its program takes them, lies among its leaves."""
        leaves = jax.tree.leaves(self.trees[b])
        return tuple(leaves.index(self.slots[i]) for i in self.pieces[b].params)

    def takes(self, b: int) -> tuple[Shapes, Shapes, Shapes]:
        """The shapes of the parameters, in the order of their leaves, of z and of the derived values of block b."""
        piece, avals = self.pieces[b], self.pieces[b].program.in_avals
        n = len(piece.params)
        params: list[Any] = [None] * n
        for place, aval in zip(self.order(b), avals, strict=False):
            params[place] = aval
        derived = self.hoist.out_avals
        return shapes(params), shapes(avals[n : n + piece.n_z]), shapes(derived)


def shapes(leaves: Sequence[Any]) -> Shapes:
    """Shape and type of every leaf."""
    return tuple(shape_of(leaf) for leaf in leaves)


def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of a leaf."""
    leaf = leaf if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else jnp.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True))


def leaf_types(found: Shapes) -> tuple[Any, ...]:
    """The same as plain tuples, quick to compare."""
    return tuple((s.shape, s.dtype) for s in found)


def structs(key: tuple[Any, ...]) -> Shapes:
    """And back."""
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in key)


def text(found: Shapes) -> str:
    """For messages."""
    return "(" + ", ".join(f"{s.dtype}{list(s.shape)}" for s in found) + ")"
