"""Proof that a program keeps samples apart: never where a derivative says otherwise, and for the layers there are."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from jax import lax

import localhessian as lh
from localhessian.network._apart import keeps_apart
from localhessian.network._traced import runs_alone, trace

pytestmark = [pytest.mark.once, pytest.mark.relaxed]

N, D = 4, 3
W = np.random.default_rng(0).standard_normal((D, D)).astype(np.float32)
LABELS = jnp.array([0, 2, 1, 2])
NUMBERS = ("NCHW", "OIHW", "NCHW")


def image(z):
    return z.reshape(N, 1, 1, D)


def attention(z):
    first, second, _ = jnp.split(jnp.stack([z, 2 * z, z], 1), 3, 1)
    return networks.attention({"query": W, "key": W, "value": W}, jnp.concatenate([first, second], 1))


def pooled(z, window, strides, padding="VALID"):
    return lax.reduce_window(z, -jnp.inf, lax.max, window, strides, padding)


APART = {
    "dense": lambda z: jnp.tanh(z @ W + 1),
    "transposed": lambda z: (W @ z.T).T,
    "both operands": lambda z: jnp.einsum("ni,nj->nij", z, z).reshape(N, -1),
    "layer norm": lambda z: (z - z.mean(1, keepdims=True)) / jnp.sqrt(z.var(1, keepdims=True) + 1),
    "softmax": jax.nn.softmax,
    "attention": attention,
    "cross-entropy": lambda z: optax.softmax_cross_entropy_with_integer_labels(z, LABELS),
    "labels": lambda z: jnp.take_along_axis(jax.nn.log_softmax(z), LABELS[:, None], 1)[:, 0],
    "table": lambda z: jnp.asarray(W)[(z > 0).astype(int)] * z[:, :, None],
    "columns": lambda z: z[:, jnp.array([2, 0])],
    "shifted": lambda z: jnp.concatenate([z, z[:, :1]], 1)[:, 1:],
    "flipped and tiled": lambda z: jnp.tile(z[:, ::-1], (1, 2)),
    "sorted": lambda z: jnp.sort(z, 1),
    "padded": lambda z: jnp.pad(z, ((0, 0), (1, 2))),
    "cumulated": lambda z: jnp.cumsum(z, 1),
    "largest": lambda z: z * jnp.argmax(z, 1)[:, None],
    "image": lambda z: lax.conv_general_dilated(image(z), W[None, None], (1, 1), "SAME", dimension_numbers=NUMBERS),
    "pooling": lambda z: pooled(image(z), (1, 1, 1, 2), (1, 1, 1, 1)),
    "split and joined": lambda z: z.reshape(N, D, 1).transpose(1, 0, 2).reshape(D, N).T,
    "rules of its own": lambda z: jax.nn.relu(networks.doubled(lambda t: 2 * t)(z)),
    "checkpoint": jax.checkpoint(jax.jit(jnp.sin)),
    "constant": lambda z: jnp.ones((N, 2)),
}
MIXED = {
    "mean": lambda z: z - z.mean(0),
    "reversed": lambda z: z[::-1],
    "rolled": lambda z: jnp.roll(z, 1, 0),
    "rolled by a gather": lambda z: z[jnp.array([1, 2, 3, 0])],
    "taken by a sample": lambda z: jnp.asarray(W)[:, 0][LABELS % 3][:, None] * z[jnp.argmax(z[:, 0])],
    "reshaped": lambda z: z.reshape(D, N).T.reshape(N, D),
    "read as a square": lambda z: jnp.concatenate([z, z[:, :1]], 1).T,
    "similarity": lambda z: z @ z.T,
    "products": lambda z: jnp.einsum("ni,mi->nm", z, z),
    "cumulated": lambda z: jnp.cumsum(z, 0),
    "sorted": lambda z: jnp.sort(z, 0),
    "shifted": lambda z: jnp.pad(z, ((1, 0), (0, 0)))[:-1],
    "joined": lambda z: jnp.concatenate([z[1:], z[:1]]),
    "split": lambda z: jnp.concatenate(jnp.split(z, 2)[::-1]),
    "unstacked": lambda z: jnp.stack(jnp.unstack(z)[::-1]),
    "stacked": lambda z: jnp.stack([z[1], z[0], z[3], z[2]]),
    "tiled": lambda z: jnp.tile(z, (2, 1))[1:5],
    "flattened": lambda z: z.reshape(-1)[::-1].reshape(N, D),
    "an image of samples": lambda z: lax.conv_general_dilated(
        z.reshape(1, 1, N, D), W[None, None], (1, 1), "SAME", dimension_numbers=NUMBERS
    ).reshape(N, D),
    "pooled samples": lambda z: pooled(z, (2, 1), (1, 1), "SAME"),
    "scan": lambda z: lax.scan(lambda sum, row: (sum + row, sum), jnp.zeros(D), z)[1],
    "rule of its own": networks.doubled(lambda t: t[::-1]),
    "branch": lambda z: lax.cond(True, lambda z: z[::-1], lambda z: z, z),
}


def block(apply):
    return lh.Chain([lh.Block("block", lambda w, z: apply(z))])


def is_proven(apply, z):
    return trace(block(apply), {}, z, None).apart[0]


@pytest.mark.parametrize(("cases", "proven"), [(APART, True), (MIXED, False)])
def test_what_is_proven_is_true(cases, proven):
    z = jnp.asarray(np.random.default_rng(1).standard_normal((N, D)), jnp.float32)
    for name, apply in cases.items():
        jacobian = np.asarray(jax.jit(jax.jacfwd(apply))(z)).reshape(N, -1, N, D)
        mixes = any(np.any(jacobian[i, :, j]) for i in range(N) for j in range(N) if i != j)
        assert mixes != proven, name
        assert is_proven(apply, z) == proven, name


def test_of_a_square_each_axis_may_be_the_samples():
    """Nothing but the rules tells the axes of a square from each other."""
    z = jnp.ones((D, D))
    assert not is_proven(lambda z: z.T, z)
    assert not is_proven(lambda z: W @ z, z)
    assert not is_proven(lambda z: z + z.T, z)
    assert is_proven(lambda z: z @ W, z)
    assert is_proven(lambda z: (z.T + 1).T, z)
    assert not keeps_apart(jax.make_jaxpr(lambda a, b: a + b)(z, z), [0, 1])


def test_a_chain_is_probed_where_nothing_is_proven():
    z, y = jnp.ones((N, D)), jnp.zeros((N, D))
    chain = lh.Chain([lh.Block("plain", lambda w, z: w * z), lh.Block("scan", lambda w, z: MIXED["scan"](z) + z)])
    params = {"plain": jnp.ones(())}
    apart = lambda z, y: ((z - y) ** 2).sum(1)
    mixing = lambda z, y: ((z - y.mean()) ** 2).sum(1) * z.sum()
    found = lh.back_match(chain, params, z, y, apart).coupled
    assert (bool(found["plain"]), bool(found["scan"])) == (False, True)
    plain = lh.Chain(chain.blocks[:1])
    found = [lh.back_match(plain, params, z, y, loss).coupled["plain"] for loss in (apart, mixing)]
    assert [bool(coupled) for coupled in found] == [False, True]
    assert all(isinstance(coupled, jax.Array) for coupled in found)
    traced = jax.jit(lambda z: lh.back_match(plain, params, z, y, mixing).coupled)(z)
    assert bool(traced["plain"])


WHOLE = {
    "constant of every sample": lambda z: z + np.arange(N, dtype=np.float32)[: len(z), None],
    "divided by their number": lambda z: z / len(z),
    "cut at their number": lambda z: z[:, : min(len(z), 3)],
    "another layer for a full batch": lambda z: z @ W if len(z) == N else z @ (2 * W),
    "reshaped to a number": lambda z: z.reshape(N, D),
    "a constant in place of samples": lambda z: jnp.ones((N, 2)) * z[:, :2],
    "tiled as often": lambda z: jnp.tile(z, (1, len(z))),
}
"""What keeps samples apart, and gives some of them alone something else, or nothing."""


@pytest.mark.parametrize(("cases", "proven"), [(APART, True), (WHOLE, False)])
def test_what_is_proven_of_some_samples_alone_is_true(cases, proven):
    """Of constants with an entry for each sample, and shapes with their number, nothing is proven."""
    z = jnp.asarray(np.random.default_rng(1).standard_normal((N, D)), jnp.float32)
    some = np.array([2, 0])
    for name, apply in cases.items():
        found = runs_alone(lh.Block("block", lambda w, z, apply=apply: apply(z)), (), z, None, len(some))
        if found:
            # To the last bit of float32, computed beyond it: some CPUs round a batch of another length differently.
            with jax.enable_x64(True):
                wide = jnp.asarray(z, jnp.float64)
                alone, of_all = (jax.jvp(apply, (part,), (jnp.cos(part),)) for part in (wide[some], wide))
                for one, other in zip(alone, of_all, strict=True):
                    np.testing.assert_array_equal(
                        np.asarray(one, np.float32), np.asarray(other, np.float32)[some], err_msg=name
                    )
        assert found == (proven and name not in OF_FOUR), name


OF_FOUR = ("cross-entropy", "labels", "image", "pooling", "split and joined", "both operands", "constant")
"""Written for a batch of that size alone."""
