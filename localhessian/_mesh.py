"""How arrays lie over devices: on one, over a mesh, or in part where only other processes have them.

Where the compiler is left to choose, products of sharded parameters come out whole on every device. So vectors are told
to lie over the axes of the mesh that the arrays they stand for lie over.
"""

import math
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def is_here(leaf: Any) -> bool:
    """Whether this process has all of an array's numbers."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return True
    return leaf.is_fully_addressable or leaf.is_fully_replicated


def is_elsewhere(*trees: Any) -> bool:
    """Whether only other processes have some of the numbers of these arrays."""
    arrays = [leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.Array)]
    # Without an array nobody asks JAX for its devices: `jax.distributed.initialize` may come after imports.
    return bool(arrays) and jax.process_count() > 1 and not all(map(is_here, arrays))


def lies(leaf: Any) -> NamedSharding | None:
    """How an array lies over a mesh of several devices; None where it lies on one, or is traced."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return None
    found = leaf.sharding
    return found if isinstance(found, NamedSharding) and found.mesh.size > 1 else None


def over_mesh(leaves: Any) -> NamedSharding | None:
    """How vectors of these arrays lie: their leading axis over every axis of the mesh that some array lies over.

    None where all lie on one device. A vector whose length the devices do not divide is padded inside of programs.
    """
    found = [where for where in map(lies, leaves) if where is not None]
    if not found:
        return None
    mesh = found[0].mesh
    used = {name for where in found for names in where.spec for name in _several(names)}
    axes = tuple(name for name in mesh.axis_names if name in used)
    return NamedSharding(mesh, PartitionSpec(axes or None))


def _several(names: Any) -> tuple[Any, ...]:
    """The axes of one entry of a specification."""
    return names if isinstance(names, tuple) else (names,)


def constrained(value: Tree, where: NamedSharding | None) -> Tree:
    """An array in a program that lies so; as the compiler chooses where there is no mesh."""
    return value if where is None else jax.lax.with_sharding_constraint(value, where)


def like(tree: Tree, other: Any) -> Tree:
    """Arrays that lie as those of another tree do, wherever these lie over a mesh."""
    if is_traced(tree):
        return tree

    def moved(leaf: Any, model: Any) -> Any:
        where = lies(model)
        return leaf if where is None else settled(jax.device_put(leaf, where))

    return jax.tree.map(moved, tree, other)


def samples_like(tree: Tree, model: Any) -> Tree:
    """Arrays whose leading axis, of samples, lies over a mesh as the model's does; whole if it does not fit."""
    where = lies(model)
    if where is None or is_traced(tree):
        return tree
    rows = NamedSharding(where.mesh, PartitionSpec(*where.spec[:1]))
    whole = NamedSharding(where.mesh, PartitionSpec())
    names = [name for entry in where.spec[:1] for name in _several(entry) if name is not None]
    parts = math.prod(where.mesh.shape[name] for name in names)
    fits = lambda leaf: leaf.ndim > 0 and leaf.shape[0] % parts == 0
    return jax.tree.map(lambda leaf: settled(jax.device_put(leaf, rows if fits(leaf) else whole)), tree)


def settled(tree: Tree) -> Tree:
    """Arrays that are computed when this returns, on the CPUs of several processes; elsewhere as they are.

    There several programs in flight with collectives can wait for each other for ever (jaxlib 0.10, two processes of
    two devices): one device waits in gloo for another, which XLA holds back because too many programs are in flight.
    """
    return jax.block_until_ready(tree) if jax.process_count() > 1 and jax.default_backend() == "cpu" else tree


def everywhere(tree: Tree) -> Tree:
    """Arrays of which every process has all numbers: small ones, that results consist of."""
    return jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> Any:
    where = None if is_here(leaf) else lies(leaf)
    return leaf if where is None else settled(jax.device_put(leaf, NamedSharding(where.mesh, PartitionSpec())))


def is_traced(*trees: Any) -> bool:
    """Whether some numbers come only when a program runs (under jit or vmap)."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))
