"""What numbers depend on, as one digest: two analyses with the same one are of the same network, data and settings."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from localhessian._mesh import is_elsewhere, is_here
from localhessian._programs import program_text
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
    for block, z in zip(matching.chain.blocks, matching.activations, strict=False):
        arguments = matching.params[block.name], z, matching.context
        digest.update(f"{block.name} {program_text(block, *arguments)}".encode())
    digest.update(program_text(matching.loss, matching.activations[-1], matching.y).encode())
    return digest.hexdigest()


def _own_parts(leaf: jax.Array) -> list[Any]:
    """What this process has of an array, each part once."""
    return [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0]


def _bytes(path: str, leaf: Any) -> bytes:
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        path, leaf = f"{path} {jax.random.key_impl(leaf)}", jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return f"{path} {array.dtype} {array.shape} ".encode() + array.tobytes()
