"""Proof that there are derivatives: never where tracing them fails, and for what layers are made of."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax import lax
from jax.interpreters import ad
from jax.sharding import SingleDeviceSharding

import localhessian as lh
from localhessian._programs import equations, traced
from localhessian.network._derivatives import _KNOWN, NO_DERIVATIVE, have_derivatives, trace_derivatives
from localhessian.network._traced import trace

pytestmark = [pytest.mark.once, pytest.mark.relaxed]

Z = np.linspace(0.1, 0.9, 16, dtype=np.float32).reshape(4, 4)
ABOVE_ONE = "acosh"
OF_TWO = "add atan2 div eq ge gt le lt max min mul ne pow rem sub"
OF_INTEGERS = "and not or xor"


def made_by_name(name):
    if name in OF_INTEGERS.split():
        operands = [Z > 0.5] * (1 if name == "not" else 2)
        return lambda z: z * getattr(lax, f"bitwise_{name}")(*operands)
    if name in OF_TWO.split():
        return lambda z: z * getattr(lax, name)(z, 2 * z)
    return lambda z: z * getattr(lax, name)(z + (name == ABOVE_ONE))


SPECIAL = {
    "add_any": lambda z: jax.vjp(lambda z: z * z, z)[1](z)[0],
    "convert_element_type": lambda z: z.astype(jnp.bfloat16),
    "copy": lambda z: jnp.array(z, copy=True),
    "integer_pow": lambda z: z**3,
    "name": lambda z: jax.ad_checkpoint.checkpoint_name(z, "z"),
    "reduce_precision": lambda z: lax.reduce_precision(z, 5, 7),
    "select_n": lambda z: jnp.where(z > 0.3, z, 2 * z),
    "sharding_constraint": lambda z: lax.with_sharding_constraint(z, SingleDeviceSharding(jax.devices()[0])),
    "broadcast_in_dim": lambda z: jnp.broadcast_to(z, (3, 4, 4)),
    "concatenate": lambda z: jnp.concatenate([z, z], 1),
    "dynamic_slice": lambda z: lax.dynamic_slice(z, (1, 1), (2, 2)),
    "gather": lambda z: z[jnp.array([0, 2])],
    "pad": lambda z: jnp.pad(z, 1),
    "reshape": lambda z: z.reshape(2, 8),
    "rev": lambda z: z[::-1],
    "slice": lambda z: z[1:3],
    "split": lambda z: jnp.split(z, 2)[0],
    "squeeze": lambda z: z[None].squeeze(0),
    "transpose": lambda z: z.T,
    "conv_general_dilated": lambda z: lax.conv_general_dilated(
        z.reshape(1, 4, 4, 1), z[:2, :2].reshape(2, 2, 1, 1), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "cumsum": lambda z: jnp.cumsum(z, 0),
    "dot_general": lambda z: z @ z,
    "reduce_max": lambda z: z.max(1),
    "reduce_min": lambda z: z.min(1),
    "reduce_sum": lambda z: z.sum(1),
    "reduce_window_sum": lambda z: lax.reduce_window(z, np.float32(0), lax.add, (2, 2), (1, 1), "VALID"),
}


@pytest.mark.parametrize("name", sorted(_KNOWN))
def test_what_counts_as_known_has_both_derivatives(name):
    """JAX has a rule for each, and both are traced where it is all that there is."""
    assert name in {primitive.name for primitive in ad.primitive_jvps}
    function = SPECIAL[name] if name in SPECIAL else made_by_name(name)
    program = traced(function, Z)[0]
    assert name in {eqn.primitive.name for eqn in equations(program)}
    assert have_derivatives(program)
    trace_derivatives(function, (Z,))


def pooled(z, **how):
    return lax.reduce_window(z, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID", **how)


straight = jax.custom_vjp(jnp.floor)
straight.defvjp(lambda z: (jnp.floor(z), ()), lambda _, cotangent: (cotangent,))


def halved(z):
    return lax.while_loop(lambda z: z.sum() > 1, lambda z: z / 2, z)


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.relu,
        jax.nn.softmax,
        jax.checkpoint(jnp.tanh),
        jax.jit(jax.nn.gelu),
        networks.doubled(lambda t: 2 * t),
        lambda z: pooled(z.reshape(1, 4, 4, 1)),
        lambda z: z + jax.random.normal(jax.random.key(0), z.shape),
        lambda z: z[:, jnp.argsort(jnp.array([3, 1, 2, 0]))],
    ],
)
def test_layers_are_known(function):
    assert have_derivatives(traced(function, Z)[0])
    trace_derivatives(function, (Z,))


@pytest.mark.parametrize(
    "function",
    [
        halved,
        jax.jit(halved),
        straight,
        networks.doubled(halved),
        lambda z: lax.clamp(z.min(), z, z.max()),
        lambda z: pooled(z.reshape(1, 4, 4, 1), window_dilation=(1, 2, 2, 1)),
        lambda z: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(z.shape, z.dtype), z),
    ],
)
def test_no_proof_where_tracing_fails(function):
    assert not have_derivatives(traced(function, Z)[0])
    with pytest.raises(NO_DERIVATIVE):
        trace_derivatives(function, (Z,))


def test_what_is_not_differentiated_needs_no_derivative():
    """A loop over the context, or behind a stopped gradient: there is no proof, and tracing finds nothing amiss."""
    for loop in (lambda z, context: halved(context), lambda z, _: halved(lax.stop_gradient(z))):
        block = lambda w, z, context, loop=loop: jnp.tanh(z @ w) + loop(z, context)
        assert not have_derivatives(traced(block, Z, Z, Z)[0])
        assert trace(lh.Chain([lh.Block("a", block)]), {"a": Z}, Z, Z).output.shape == Z.shape
