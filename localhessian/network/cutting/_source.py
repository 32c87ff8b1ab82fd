"""What stands behind a traced chain: the function, cut once for every set of shapes it meets."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from localhessian import _programs
from localhessian._types import Activations, Context, Params
from localhessian.network._context import CutContext, given_of
from localhessian.network._leaves import check_arrays, check_real, check_samples
from localhessian.network.cutting import _graph, _layout
from localhessian.network.cutting._hints import largest_opened, tied_arrays, two_ways
from localhessian.network.cutting._open import CutError, Stack, Whole, opened
from localhessian.network.cutting._program import (
    Key,
    Program,
    Settings,
    Shapes,
    leaf_types,
    shape_of,
    shapes,
    structs,
    text,
)
from localhessian.network.cutting._submodules import Model

_NAMED = 3
"""So many parameters are named in a message."""
MAX_PROGRAMS = 32
"""Sets of shapes for which a chain keeps its function cut; beyond that the longest unused is forgotten."""


@dataclass(eq=False)
class Source:
    """A function and its programs. Equal only to itself, so a chain hashes by identity."""

    fn: Callable[..., Any]
    params: Params
    x: Activations
    context: Context
    model: Model | None = None
    carry: bool = False
    has_aux: bool = False
    to_params: Callable[[Any], Params] = lambda params: params
    takes: str = "a pytree like that of the model"
    first: str | None = None

    def __post_init__(self) -> None:
        """Keep structures and shapes only, and cut the function for them."""
        _check_floating(self.params)
        check_samples("x", self.x)
        check_arrays("`context`", self.context)
        self.structures = tuple(jax.tree.structure(tree) for tree in (self.params, self.x, self.context))
        self.paths = self.params = jax.tree.map(shape_of, self.params)
        self.template = tuple(shapes(jax.tree.leaves(tree)) for tree in (self.params, self.x, self.context))
        self.params = self.x = self.context = None
        self.key = Key(Settings.now(), *map(leaf_types, self.template))
        self.program = self._cut(self.key)
        self.program_for = functools.lru_cache(MAX_PROGRAMS)(self._cut_alike)

    # ---- cutting

    def _cut_alike(self, key: Key) -> Program:
        """The function cut for other shapes: into the same blocks, with the same parameters, or not at all."""
        if key == self.key:
            return self.program
        with key.settings.again():
            program = self._cut(key)
        if program.layout != self.program.layout:
            raise CutError(
                f"at x of {text(structs(key.inputs))} the function falls into other blocks, or its blocks use other "
                f"parameters, than at the x of {text(self.template[1])} that it was cut for: cut it again for the new "
                "shape."
            )
        return program

    def _cut(self, key: Key) -> Program:
        graph, slots, output = self._taken_apart(self.fn, key)
        pieces, hoist = _graph.cut(graph, _graph.boundaries_of(graph, self.first), self.carry)
        marks = tuple(boundary.name for boundary in graph.boundaries)
        return Program(key, jax.tree.structure(output), slots, tuple(pieces), hoist, marks)

    def _taken_apart(self, fn: Callable[..., Any], key: Key) -> tuple[_graph.Graph, tuple[_layout.Slot, ...], Any]:
        """A function traced and opened: its graph, the slots of its parameters, the form of what it returns."""
        params, inputs, context = map(structs, key[1:])
        flat_fn = functools.partial(self._flat, fn)
        closed, output = jax.make_jaxpr(flat_fn, return_shape=True)(params, inputs, context)
        self._check_result(output)
        parts = _scanned(closed, params)
        split_params = [s for i, p in enumerate(params) for s in _split_shape(p, parts.get(i))]

        def run(params: Sequence[Any], inputs: Sequence[Any], context: Sequence[Any]) -> list[Any]:
            return opened(closed, [*_stacks(params, len(self.template[0]), parts), *inputs, *context])

        flat = jax.make_jaxpr(run)(split_params, inputs, context)
        slots = tuple(_layout.slots_of(self.paths, parts))
        return _graph.Graph(flat, len(split_params), len(inputs)), slots, output

    def _check_result(self, output: Any) -> None:
        """Refuse what is the next context as a part of z_B."""
        is_pair = isinstance(output, tuple) and len(output) == 2 and jax.tree.leaves(output[1])
        if is_pair and self.structures[2] == jax.tree.structure(output[1]):  # type: ignore[operator]
            raise ValueError(
                "the model returns a pair whose second part is like its context (running statistics?): say "
                "`has_aux=True`, then it is the next context and no part of z_B."
            )

    def _flat(
        self, fn: Callable[..., Any], params: Sequence[Any], inputs: Sequence[Any], context: Sequence[Any]
    ) -> Any:
        trees = [
            jax.tree.unflatten(tree, leaves)
            for tree, leaves in zip(self.structures, (params, inputs, context), strict=True)
        ]
        result = fn(*trees)
        return result[0] if self.has_aux else result

    def applies(self) -> dict[str, "Apply"]:
        """One callable for each block; equal blocks share one."""
        firsts = self.program.firsts
        shared = {first: Apply(self, tuple(b for b, one in enumerate(firsts) if one == first)) for first in set(firsts)}
        return {piece.name: shared[first] for piece, first in zip(self.program.pieces, firsts, strict=True)}

    # ---- running

    def context_for(self, x: Activations, context: Context, params: dict[str, Params] | None) -> CutContext:
        """The context given, with what the blocks need of x, for the shapes at hand."""
        given = given_of(context)
        check_samples("x", x)
        check_arrays("`context`", given)
        inputs, leaves = self._leaves(1, x, "x"), self._leaves(2, given, "context")
        of_params = _cast(self.template[0], self.template[1], inputs) if params is None else self._types_of(params)
        key = Key(Settings.now(), leaf_types(of_params), leaf_types(shapes(inputs)), leaf_types(shapes(leaves)))
        return CutContext(given, tuple(self.program_for(key).derive(*inputs, *leaves)), key)

    def _types_of(self, params: dict[str, Params]) -> Shapes:
        """The parameters of the model in the types that the blocks have them in; of a tied array, the first's."""
        types: dict[int, Any] = {}
        for name, tree in self.trees().items():
            slots, leaves = jax.tree.leaves(tree), jax.tree.leaves(params.get(name, ()))
            if len(slots) == len(leaves):
                types = {slot.leaf: shape.dtype for slot, shape in zip(slots, shapes(leaves), strict=True)} | types
        return tuple(jax.ShapeDtypeStruct(s.shape, types.get(i, s.dtype)) for i, s in enumerate(self.template[0]))

    def run(self, members: tuple[int, ...], params: Params, z: Activations, context: Context) -> Activations:
        """One block: `members` are the equal blocks it stands for."""
        b = members[0]
        name = self.program.pieces[b].name
        p_leaves, p_tree = jax.tree.flatten(params)
        if p_leaves or self.program.pieces[b].params:
            _layout.same_structure(
                p_tree, jax.tree.structure(self.program.trees[b]), f"the parameters of block `{name}`"
            )
        if not isinstance(context, CutContext):
            raise ValueError(
                f"block `{name}` was cut from a model, and its program depends on the shape of the model's input: as "
                "`context` pass `chain.context_for(x, context)`, or what `chain_from_...` returned, got "
                f"{type(context).__name__}."
            )
        leaves = self._leaves(2, context.given, "context")
        z_leaves = jax.tree.leaves(z)
        program = self.program_for(context.key)
        self._check_fits(members, program, context, shapes(p_leaves), shapes(z_leaves))
        piece = program.pieces[b]
        results = _programs.run(
            piece.program,
            *(jnp.asarray(p_leaves[i]) for i in program.order(b)),
            *(jnp.asarray(leaf) for leaf in z_leaves),
            *(leaves[i] for i in piece.context),
            *(context.derived[i] for i in piece.derived),
        )
        return jax.tree.unflatten(program.returns(b), results)

    def _check_fits(
        self, members: tuple[int, ...], program: Program, context: CutContext, params: Shapes, z: Shapes
    ) -> None:
        """Refuse a block at other shapes than those that its context was derived for."""
        b = members[0]
        *wanted, derived = program.takes(b)
        got = tuple(map(leaf_types, (params, z, shapes(context.derived), shapes(jax.tree.leaves(context.given)))))
        if got != (*map(leaf_types, (*wanted, derived)), program.key.context):
            x = text(structs(program.key.inputs))
            raise ValueError(
                f"block `{program.pieces[b].name}` got parameters {text(params)} and z {text(z)}, but its `context` "
                f"was derived for x {x}, where they are {' and '.join(map(text, wanted))}: derive "
                "it for the new `x` by `chain.context_for(x, context, params)`, or apply the whole chain, which does."
            )
        if len(members) > 1 and not program.are_equal(members):
            raise CutError(
                f"blocks that were equal to `{program.pieces[b].name}` compute something else at z {text(z)}: cut the "
                "model again with inputs of this shape."
            )

    # ---- showing

    def example(self) -> tuple[dict[str, Params], Activations, Context]:
        """The shapes of the parameters of the blocks, of x and of the context that the model was cut for."""
        trees = [jax.tree.unflatten(tree, leaves) for tree, leaves in zip(self.structures, self.template, strict=True)]
        return jax.eval_shape(self.split, trees[0]), trees[1], trees[2]

    def uses(self) -> dict[str, str]:
        """In words, for each block that takes some: how many arrays of the context, and of what x gives."""
        words = {}
        for piece in self.program.pieces:
            kinds = [(len(piece.context), "given"), (len(piece.derived), "of x")]
            words[piece.name] = ", ".join(f"{n} {kind}" for n, kind in kinds if n)
        return words

    @functools.cached_property
    def notes(self) -> list[str]:
        """In words: which arrays are tied, and how to look into a block that holds most of the parameters."""
        notes = list(tied_arrays(self.trees()))
        if self.model is not None:
            notes += two_ways(self.model, self.trees())
            notes += largest_opened(self.model, self.trees(), self._size, self._opened)
        return notes

    def _opened(self, fn: Callable[..., Any]) -> tuple[_graph.Graph, tuple[_layout.Slot, ...]]:
        with self.key.settings.again():
            return self._taken_apart(fn, self.key)[:2]

    def _size(self, slot: _layout.Slot) -> int:
        shape = self.template[0][slot.leaf].shape
        return math.prod(shape if slot.part is None else shape[1:])

    # ---- parameters

    def split(self, model_params: Params) -> dict[str, Params]:
        """Parameters of the model to parameters of the blocks."""
        given = self.to_params(model_params)
        self._check_params(given)
        leaves = self._leaves(0, given, "model_params")
        return {name: jax.tree.map(lambda slot: slot.read(leaves), tree) for name, tree in self.trees().items()}

    def merge(self, block_params: dict[str, Params], tied: str, like: Params) -> Params:
        """Parameters of the blocks to parameters of the model."""
        rest = None if like is None else self._leaves(0, self.to_params(like), "like")
        return jax.tree.unflatten(
            self.structures[0], _layout.scatter(self.trees(), block_params, self.template[0], tied, rest)
        )

    def trees(self) -> dict[str, dict[str, Any]]:
        """The slots of every block."""
        return {piece.name: tree for piece, tree in zip(self.program.pieces, self.program.trees, strict=True)}

    def next_context(self, params: dict[str, Params], x: Activations, context: Context) -> Context:
        """The context after one more forward pass."""
        given = given_of(context)
        if self.has_aux:
            zeros = jax.tree.unflatten(self.structures[0], [jnp.zeros(s.shape, s.dtype) for s in self.template[0]])
            given = self.fn(self.merge(params, "owner", zeros), x, given)[1]
        return self.context_for(x, given, params)

    def has_names(self, i: int, tree: Any) -> bool:
        """Whether leaves are named as the model's parameters (0), x (1), context (2), whatever containers hold them."""
        return _layout.names_of(tree) == _layout.names_of(jax.tree.unflatten(self.structures[i], self.template[i]))

    def _check_params(self, params: Params) -> None:
        """Refuse parameters of other names than the model's."""
        model = jax.tree.unflatten(self.structures[0], self.template[0])
        got, wanted = set(_layout.names_of(params)), set(_layout.names_of(model))
        words = [
            f"{verb} {', '.join(f'`{word}`' for word in sorted('.'.join(path) for path in names)[:_NAMED])}"
            for verb, names in (("lacks", wanted - got), ("also holds", got - wanted))
            if names
        ]
        if words:
            raise ValueError(f"`model_params` must be {self.takes}: what was given {' and '.join(words)}.")

    def _leaves(self, i: int, tree: Any, name: str) -> list[Any]:
        leaves, structure = jax.tree.flatten(tree)
        if not self.has_names(i, tree):
            _layout.same_structure(structure, self.structures[i], f"`{name}`")
        return [
            leaf if hasattr(leaf, "dtype") and isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in leaves
        ]


class Apply:
    """F_b of one block, or of several equal ones: `apply(params, z, context)`."""

    def __init__(self, source: Source, members: tuple[int, ...]) -> None:
        """The blocks `members` of `source`."""
        self.source, self.members = source, members

    def __call__(self, params: Params, z: Activations, context: Context) -> Activations:
        """The activations that leave the block."""
        return self.source.run(self.members, params, z, context)

    def __repr__(self) -> str:
        """By the name of the block, or of the first of several."""
        names = [self.source.program.pieces[b].name for b in self.members]
        more = f" and {len(names) - 1} equal" if len(names) > 1 else ""
        return f"<block {names[0]}{more}>"


def _scanned(closed: _programs.Program, params: Shapes) -> dict[int, int]:
    """The parameters that a scan over layers takes apart, with their number of slices."""
    found: dict[int, int] = {}

    def look(*args: Any) -> list[Any]:
        stacks = [Whole(arg) for arg in args[: len(params)]]
        results = opened(closed, [*stacks, *args[len(params) :]])
        found.update((i, params[i].shape[0]) for i, stack in enumerate(stacks) if stack.taken_apart)
        return results

    jax.eval_shape(look, *closed.in_avals)
    return found


def _split_shape(shape: jax.ShapeDtypeStruct, parts: int | None) -> list[jax.ShapeDtypeStruct]:
    return [shape] if parts is None else [jax.ShapeDtypeStruct(shape.shape[1:], shape.dtype)] * parts


def _stacks(arrays: Sequence[Any], count: int, parts: dict[int, int]) -> list[Any]:
    rest = iter(arrays)
    return [Stack(list(itertools.islice(rest, parts[i]))) if i in parts else next(rest) for i in range(count)]


def _check_floating(params: Params) -> None:
    check_arrays("`params`", params)
    check_real("`params`", params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = ".".join(_layout.path_names(path)) or "params"
            raise ValueError(
                f"parameter `{name}` has the type {jnp.result_type(leaf)}, which has no derivative: `params` must hold "
                "floating-point arrays only. Put it into `context`."
            )


def _cast(template: Shapes, old: Sequence[Any], new: Sequence[Any]) -> Shapes:
    """The template with the types changed as they changed from `old` to `new`."""
    to = {o.dtype: n.dtype for o, n in zip(old, new, strict=False) if o.dtype != n.dtype}
    return tuple(jax.ShapeDtypeStruct(s.shape, to.get(s.dtype, s.dtype)) for s in template)
