"""A traced program taken apart at its marks: which equations, parameters and context each block needs.

A value is known by what it depends on. What depends on the input and on parameters is an activation: it is computed in
the first block that needs it, and may reach a later one inside z only. What depends on the input alone is derived: a
later block gets it as context. Everything else (from parameters, context or constants) is computed again in every block
that uses it.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from localhessian._programs import Equation, Program, assemble, is_variable, variables, where
from localhessian.network.cutting import _mark
from localhessian.network.cutting._open import CutError, mark_names, tag_of

_PARAMS, _INPUT = 1, 2
_ACTIVATION = _PARAMS | _INPUT


@dataclass(frozen=True)
class Boundary:
    """Where a block ends: the variables that make up z there."""

    name: str
    kind: str
    variables: tuple[Any, ...]


@dataclass(frozen=True)
class Piece:
    """One block of a cut: a program of (parameters, z, context leaves, derived values) and which of them it takes."""

    name: str
    program: Program
    params: tuple[int, ...]
    context: tuple[int, ...]
    derived: tuple[int, ...]
    n_z: int


@dataclass
class Graph:
    """A flat program with its marks taken out, the variables behind them, and what every variable depends on."""

    closed: Program
    n_params: int
    n_inputs: int
    boundaries: list[Boundary] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)
    made_by: dict[Any, int] = field(default_factory=dict)
    depends: dict[Any, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Walk the program once."""
        jaxpr = self.closed.jaxpr
        alias: dict[Any, Any] = {}
        leaves: list[Any] = []
        self.params = jaxpr.invars[: self.n_params]
        self.inputs = jaxpr.invars[self.n_params :][: self.n_inputs]
        self.context = jaxpr.invars[self.n_params + self.n_inputs :]
        self.depends |= dict.fromkeys(self.params, _PARAMS) | dict.fromkeys(self.inputs, _INPUT)
        for eqn in jaxpr.eqns:
            sources = [alias.get(atom, atom) if is_variable(atom) else atom for atom in eqn.invars]
            tag = tag_of(eqn)
            if tag is None:
                self._keep(eqn.replace(invars=sources))
                continue
            alias[eqn.outvars[0]] = sources[0]
            leaves.extend(variables(sources))
            if tag.leaf == tag.leaves - 1:
                self._bound(Boundary(tag.name, tag.kind, tuple(leaves)))
                leaves = []
        self.outputs = [alias.get(atom, atom) if is_variable(atom) else atom for atom in jaxpr.outvars]

    def _keep(self, eqn: Equation) -> None:
        kind = 0
        for variable in variables(eqn.invars):
            kind |= self.depends.get(variable, 0)
        for variable in eqn.outvars:
            self.made_by[variable] = len(self.equations)
            self.depends[variable] = kind
        self.equations.append(eqn)

    def _bound(self, boundary: Boundary) -> None:
        self.boundaries.append(boundary)
        if boundary.kind not in (_mark.END, _mark.OUT):
            return
        if not any(self.depends.get(v, 0) & _INPUT for v in variables(boundary.variables)):
            raise CutError(
                f"the boundary `{boundary.name}` marks a value that does not depend on the input, so it cannot be the "
                "output of a block: mark the activations instead."
            )
        self.depends |= dict.fromkeys((v for v in variables(boundary.variables) if v in self.made_by), _ACTIVATION)

    def carries(self, variable: Any) -> bool:
        """Whether a variable is an activation: it depends on the input and on parameters."""
        return self.depends.get(variable, 0) == _ACTIVATION

    def back(self, targets: Iterable[Any], stop: Iterable[Any] = (), stop_derived: bool = False) -> "Slice":
        """Everything that `targets` are computed from, back to the variables in `stop`."""
        found, stop = Slice(), set(stop)
        pending = list(variables(targets))
        while pending:
            variable = pending.pop()
            if variable in found.seen:
                continue
            found.seen.add(variable)
            hoisted = stop_derived and self.depends.get(variable, 0) == _INPUT and not self._reshaped(variable)
            if variable in stop:
                found.reached.add(variable)
            elif hoisted:
                found.derived.add(variable)
            elif variable in self.made_by:
                index = self.made_by[variable]
                found.equations.add(index)
                pending.extend(variables(self.equations[index].invars))
            else:
                found.leaves.add(variable)
        return found

    def _reshaped(self, variable: Any) -> bool:
        """Whether a value takes one other of x that is no larger: then equal layers share that one (their mask)."""
        if variable not in self.made_by:
            return False
        used = variables(self.equations[self.made_by[variable]].invars)
        sources = {v for v in used if self.depends.get(v, 0) & _INPUT}
        return len(sources) == 1 and sources.pop().aval.size <= variable.aval.size

    def cuts(self, boundary: Boundary) -> bool:
        """Whether every activation that the outputs need passes through the boundary."""
        if not all(is_variable(v) and self.carries(v) for v in boundary.variables):
            return False
        after = self.back(self.outputs, boundary.variables, stop_derived=True)
        before = self.back(boundary.variables)
        shared = (self.equations[i] for i in after.equations & before.equations)
        return bool(after.reached) and not any(self.carries(v) for eqn in shared for v in eqn.outvars)

    def may_end(self, boundary: Boundary) -> bool:
        """Whether a boundary holds activations that the outputs need; others of those may jump over it."""
        needed = self.needed(boundary)
        return bool(needed) and all(is_variable(v) and self.carries(v) for v in needed)

    def needed(self, boundary: Boundary) -> tuple[Any, ...]:
        """What is used of the values at a mark: a module may return those of its layers, or its next state, besides."""
        reached = self.back(self.outputs, boundary.variables).reached
        return tuple(dict.fromkeys(variable for variable in boundary.variables if variable in reached))

    def program(self, found: "Slice", inputs: Sequence[Any], outputs: Sequence[Any]) -> Program:
        """The equations of a slice as a program of their own."""
        equations = [self.equations[i] for i in sorted(found.equations)]
        constants = dict(zip(self.closed.jaxpr.constvars, self.closed.consts, strict=True))
        used = [v for v in constants if v in found.leaves]
        return assemble(used, [constants[v] for v in used], inputs, outputs, equations)


@dataclass
class Slice:
    """What a value is computed from: equations by index, inputs of the program, variables where the walk stopped."""

    seen: set[Any] = field(default_factory=set)
    equations: set[int] = field(default_factory=set)
    leaves: set[Any] = field(default_factory=set)
    reached: set[Any] = field(default_factory=set)
    derived: set[Any] = field(default_factory=set)


def boundaries_of(graph: Graph, first: str | None) -> list[Boundary]:
    """The boundaries to cut at, each named after the block that ends there; the last one is the output."""
    ends = [mark for mark in graph.boundaries if mark.kind in (_mark.END, _mark.OUT)]
    if ends:
        return ends_at(graph, ends)
    entries = _proposed(graph)
    names = [_first_name(graph, entries) or first or "output", *_names(graph, entries)]
    places = [*(entry.place for entry in entries), tuple(graph.outputs)]
    kept = [Boundary(name, _mark.END, place) for name, place in zip(names, places, strict=True)]
    for i, mark in reversed(list(enumerate(graph.boundaries))):
        block = sum(entry.begin < i for entry in entries)
        if mark.kind == _mark.HALF and _parent(mark.name) == _parent(names[block]) and graph.may_end(mark):
            kept.insert(block, Boundary(mark.name, _mark.END, graph.needed(mark)))
    return _numbered(_without_empty(graph, kept))


def _parent(name: str) -> str:
    """The layer of a direction."""
    return name.rpartition(".")[0]


def ends_at(graph: Graph, marks: Sequence[Boundary]) -> list[Boundary]:
    """The boundaries where blocks end at some marks, and the last one at the output."""
    ends = [
        mark if mark.kind == _mark.END else Boundary(mark.name, _mark.END, graph.needed(mark) or mark.variables)
        for mark in marks
    ]
    return _numbered(_without_empty(graph, [*ends, Boundary("output", _mark.END, tuple(graph.outputs))]))


class _Entry(NamedTuple):
    """Where a block begins: at the marks `begin` to `end` of the program, modules inside each other entered at once."""

    begin: int
    end: int
    place: tuple[Any, ...]


def _proposed(graph: Graph) -> list[_Entry]:
    """Where blocks begin, after the first one: where the layer before has returned, else where a layer is entered."""
    marks, entries = graph.boundaries, list[_Entry]()
    returned: tuple[Any, ...] | None = None
    end = 0
    while (begin := end) < len(marks):
        mark, end = marks[begin], _entered(marks, begin)
        if mark.kind == _mark.HALF:
            continue
        if mark.kind == _mark.STOP:
            returned = graph.needed(mark) if graph.cuts(mark) else None
            continue
        place = mark.variables if returned is None else returned
        # A layer on a branch that leads nowhere may be entered after one further down the chain.
        after_last = not entries or graph.back(place, entries[-1].place).reached
        if after_last and (returned is not None or graph.cuts(mark)):
            entries.append(_Entry(begin, end, place))
        returned = None
    if returned is not None and graph.back(graph.outputs, returned).leaves & set(graph.params):
        entries.append(_Entry(end, end, returned))
    return entries


def _entered(marks: Sequence[Boundary], begin: int) -> int:
    """The end of the marks from `begin` on at which modules are entered with the same value."""
    end = begin + 1
    while end < len(marks) and marks[begin].kind == marks[end].kind == _mark.START:
        if marks[end].variables != marks[begin].variables:
            break
        end += 1
    return end


def _names(graph: Graph, entries: Sequence[_Entry]) -> list[str]:
    """Of each block the outermost module entered there that returns before the next block begins."""
    marks, names = graph.boundaries, []
    for entry, following in itertools.zip_longest(entries, entries[1:]):
        own, after = marks[entry.begin : entry.end], following.begin if following else len(marks)
        stopped = {mark.name for mark in marks[entry.end : after] if mark.kind == _mark.STOP}
        names.append(next((mark.name for mark in own if mark.name in stopped), own[-1].name if own else "output"))
    return names


def _first_name(graph: Graph, entries: Sequence[_Entry]) -> str | None:
    """Of the block before the first proposed boundary: the layer it begins with, which may lie inside a scan."""
    name = next((name for eqn in graph.closed.jaxpr.eqns for name in mark_names(eqn)), None)
    if not graph.boundaries or graph.boundaries[0].name != name:
        return name
    if entries and entries[0].begin == 0:
        return "stem"  # parameters of the model itself stand before its first layer
    return _names(graph, [_Entry(0, _entered(graph.boundaries, 0), ()), *entries])[0]


def _without_empty(graph: Graph, boundaries: list[Boundary]) -> list[Boundary]:
    """Leave out the boundaries that lie where the one before (or the input) already is."""
    kept: list[Boundary] = []
    at = tuple(graph.inputs)
    for boundary in boundaries:
        if boundary.variables != at or (boundary is boundaries[-1] and not kept):
            kept.append(boundary)
            at = boundary.variables
    return kept


def _numbered(boundaries: list[Boundary]) -> list[Boundary]:
    names = [boundary.name for boundary in boundaries]
    seen: dict[str, int] = {}
    numbered = []
    for boundary in boundaries:
        i = seen[boundary.name] = seen.get(boundary.name, -1) + 1
        name = f"{boundary.name}[{i}]" if names.count(boundary.name) > 1 else boundary.name
        numbered.append(Boundary(name, boundary.kind, boundary.variables))
    return numbered


def cut(graph: Graph, boundaries: Sequence[Boundary], carry: bool) -> tuple[list[Piece], Program]:
    """The program of every block, and the one that derives from the input what later blocks take as context.

    Raises:
        CutError: An activation jumps over a boundary and `carry` is false, or a block does not use its input.
    """
    places = [list(graph.inputs), *(list(boundary.variables) for boundary in boundaries)]
    slices = _slices(graph, boundaries, places, carry)
    derived = {v: i for i, v in enumerate(dict.fromkeys(v for found in slices for v in _ordered(graph, found.derived)))}
    pieces = []
    for boundary, source, target, found in zip(boundaries, places, places[1:], slices, strict=False):
        params = [i for i, v in enumerate(graph.params) if v in found.leaves]
        context = [i for i, v in enumerate(graph.context) if v in found.leaves]
        hoisted = [v for v in derived if v in found.derived]
        taken = [graph.params[i] for i in params], source, [graph.context[i] for i in context], hoisted
        program = graph.program(found, list(itertools.chain(*taken)), target)
        at = tuple(derived[v] for v in hoisted)
        pieces.append(Piece(boundary.name, program, tuple(params), tuple(context), at, len(source)))
    hoist = graph.program(graph.back(derived), [*graph.inputs, *graph.context], list(derived))
    return pieces, hoist


def _slices(graph: Graph, boundaries: Sequence[Boundary], places: list[list[Any]], carry: bool) -> list[Slice]:
    owner: dict[int, int] = {}
    for b, boundary in enumerate(boundaries):
        found = graph.back(places[b + 1], places[b], stop_derived=b > 0)
        for i in found.equations:
            if any(graph.carries(v) for v in graph.equations[i].outvars):
                owner.setdefault(i, b)
        jumping = [v for v in found.seen - found.reached if owner.get(graph.made_by.get(v, -1), b) < b]
        jumping = _first_needed(graph, jumping, found, owner, b, places[b + 1])
        if jumping and not carry:
            raise _jump(graph, boundaries, owner, b, jumping[0])
        for v in jumping:
            for k in range(owner[graph.made_by[v]] + 1, b + 1):
                if v not in places[k]:
                    places[k].append(v)
        if b > 0 and not jumping and not found.reached:
            raise CutError(
                f"the boundary `{boundaries[b - 1].name}` does not cut: the block `{boundary.name}` after it does not "
                "use the marked value. Pass on what `mark` returns, or leave the mark out."
            )
    return [graph.back(places[b + 1], places[b], stop_derived=b > 0) for b in range(len(boundaries))]


def _first_needed(
    graph: Graph, jumping: list[Any], found: Slice, owner: dict[int, int], b: int, targets: list[Any]
) -> list[Any]:
    """Of the values of earlier blocks that block b reaches, those its own equations use or hand on."""
    own = [graph.equations[i] for i in found.equations if owner.get(i, b) == b]
    used = {v for eqn in own for v in variables(eqn.invars)} | set(variables(targets))
    return _ordered(graph, [v for v in jumping if v in used])


def _jump(graph: Graph, boundaries: Sequence[Boundary], owner: dict[int, int], b: int, variable: Any) -> CutError:
    maker = graph.made_by[variable]
    a = owner[maker]
    made = where(graph.equations[maker])
    users = [i for i, eqn in enumerate(graph.equations) if variable in eqn.invars and owner.get(i) == b]
    used = where(graph.equations[users[0]]) if users else "the output"
    over = boundaries[b - 1].name
    return CutError(
        f"the boundary `{over}` does not cut: a value of shape {variable.aval.str_short()}, made in block "
        f"`{boundaries[a].name}` at {made} and used in block `{boundaries[b].name}` at {used}, jumps over it. Carry "
        f"the value inside z (`z, value = lh.mark((z, value), {over!r})`, or pass `carry=True`), or move the boundary "
        "to where nothing jumps."
    )


def _ordered(graph: Graph, variables: Iterable[Any]) -> list[Any]:
    """In program order: inputs first."""
    place = {v: i for i, v in enumerate([*graph.inputs, *(v for eqn in graph.equations for v in eqn.outvars)])}
    return sorted(variables, key=place.__getitem__)
