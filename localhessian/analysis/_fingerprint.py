"""What numbers depend on, as one digest: two analyses with the same one are of the same network, data and settings."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from localhessian._memory import remembered
from localhessian._mesh import is_elsewhere, is_here
from localhessian._programs import program_text
from localhessian._tree import abstracted, of_shapes
from localhessian.network import BackMatching


def fingerprint(matching: BackMatching, settings: Any) -> str:
    """A digest of parameters, data and context with their shapes and types, and of the programs of blocks and loss.

    Args:
        matching: The network at its point.
        settings: Whatever else matters, with a short and complete `repr`.
    """
    digest = hashlib.sha256(repr(settings).encode())
    data = matching.params, matching.activations[0], matching.y, matching.context
    parts = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        for here in [leaf] if is_here(leaf) else _own_parts(leaf):
            (digest if here is leaf else parts).update(_bytes(jax.tree_util.keystr(path), here))
    if is_elsewhere(data):
        digest.update(multihost_utils.process_allgather(np.frombuffer(parts.digest(), np.uint8)).tobytes())
    for name, kind, z in zip(matching.chain.names, matching.kinds, matching.activations, strict=False):
        arguments = matching.params[name], z, matching.context
        digest.update(f"{name} {_text(kind, *abstracted(arguments))}".encode())
    digest.update(_text(matching.loss, *abstracted((matching.activations[-1], matching.y))).encode())
    return digest.hexdigest()


@remembered
def _text(function: Callable[..., Any], treedef: Any, leaves: Any) -> str:
    return program_text(function, *of_shapes(treedef, leaves))


def _own_parts(leaf: jax.Array) -> list[Any]:
    """What this process has of an array, each part once."""
    return [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0]


def _bytes(path: str, leaf: Any) -> bytes:
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        path, leaf = f"{path} {jax.random.key_impl(leaf)}", jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return f"{path} {array.dtype} {array.shape} ".encode() + array.tobytes()
