"""Tangents of several arguments pushed through a function together: each argument's own, in one small program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localhessian._programs import equations, primitives, pushed

pytestmark = pytest.mark.once
COUNT = 3


def _dense(one, two):
    return [jnp.tanh(two[0] @ one[0] + one[1])]


def _convolution(image, kernel):
    return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolved_twice(one, two):
    hidden = _convolution(two[0], one[0])
    hidden = jax.nn.relu((hidden - hidden.mean((0, 1, 2), keepdims=True)) * jax.lax.rsqrt(jnp.var(hidden) + 1e-3))
    return [two[0] + _convolution(hidden, one[1])]


def _in_loops(one, two):
    last, every = jax.lax.scan(lambda carry, row: (jnp.tanh(carry @ one[0] + row), carry.sum()), two[0], two[1])
    grown = jax.lax.fori_loop(0, 3, lambda i, carry: carry * jnp.sin(one[0]) + i.astype(carry.dtype), one[0])
    times = jnp.sum(two[0] > 0).astype(jnp.int32)
    step = lambda state: (state[0] + 1, jnp.tanh(state[1] @ one[0]) + state[0].astype(two[0].dtype))
    _, repeated = jax.lax.while_loop(lambda state: state[0] < times, step, (jnp.int32(0), two[0]))
    return [last, every, grown, repeated]


def _in_branches(one, two):
    branch = jax.lax.cond(jnp.sum(one[0]) > 0, lambda a, b: a * b, lambda a, b: a + b, one[0], two[0])
    return [branch, jnp.where(one[0] > 0, one[0], two[0] ** 2), jax.lax.concatenate([one[0], two[0]], 0)]


def _in_calls(one, two):
    shared = jax.jit(lambda a, b: jnp.exp(a) * b)
    return [jax.checkpoint(shared)(one[0], two[0]), jax.nn.softmax(shared(two[0], one[0]))]


def _of_one_or_none(one, two):
    return [jnp.sin(two[0]), jnp.cos(one[0]).astype(jnp.bfloat16), jnp.zeros_like(one[0]), one[0]]


SHAPES = {
    _dense: ([(4, 5), (1, 5)], [(3, 4)]),
    _convolved_twice: ([(3, 3, 2, 2), (3, 3, 2, 2)], [(2, 4, 4, 2)]),
    _in_loops: ([(3, 3)], [(1, 3), (4, 1, 3)]),
    _in_branches: ([(2, 3)], [(2, 3)]),
    _in_calls: ([(2, 3)], [(2, 3)]),
    _of_one_or_none: ([(2, 3)], [(2, 3)]),
}


def _numbers(shapes):
    generator, dtype = np.random.default_rng(0), jnp.result_type(float)
    return [[generator.standard_normal(shape).astype(dtype) for shape in own] for own in shapes]


def _tangents(arguments):
    return _numbers([[(COUNT, *leaf.shape) for leaf in leaves] for leaves in arguments])


def _apart(function, arguments, tangents):
    """By each argument a `jax.vmap` of a `jax.jvp`."""
    images = []
    for i, own in enumerate(tangents):
        by_one = lambda leaves, i=i: function(*(leaves if j == i else other for j, other in enumerate(arguments)))
        images.append(jax.vmap(lambda t, f=by_one, i=i: jax.jvp(f, (arguments[i],), (t,))[1])(own))
    return [jnp.stack(leaves) for leaves in zip(*images, strict=True)]


@pytest.mark.parametrize("function", SHAPES, ids=lambda function: function.__name__.strip("_"))
def test_every_argument_has_its_own_tangents(function, tol):
    arguments = _numbers(SHAPES[function])
    tangents = _tangents(arguments)

    @jax.jit
    def both(arguments, tangents):
        together, what = pushed(lambda values: (function(*values), "anything"), arguments, tangents)
        assert what == "anything"
        return together, _apart(function, arguments, tangents)

    for ours, theirs in zip(*both(arguments, tangents), strict=True):
        assert ours.dtype == theirs.dtype
        wide = np.asarray(theirs, np.float64)
        # The same products in another order.
        np.testing.assert_allclose(np.asarray(ours, np.float64), wide, atol=tol.identity * (1 + np.abs(wide).max()))


def test_behind_the_place_where_arguments_meet_is_one_product():
    """Two forward, one by each kernel and by the image, one of what comes of image and first kernel by the second."""
    arguments = _numbers(SHAPES[_convolved_twice])
    push = lambda *given: pushed(lambda values: (_convolved_twice(*values), None), *given)[0]
    program = jax.make_jaxpr(push)(arguments, _tangents(arguments))
    products = [eqn for eqn in equations(program) if eqn.primitive is primitives.conv_general_dilated_p]
    assert len(products) == 2 + 2 + 1 + 1


def test_one_argument_alone():
    *arguments, other = _numbers(SHAPES[_dense])
    function = lambda values: _dense(values[0], other)
    tangents = _tangents(arguments)
    images, _ = pushed(lambda values: (function(values), None), arguments, tangents)
    (wanted,) = _apart(lambda one: function([one]), arguments, tangents)
    assert images[0].shape == (1, COUNT, 3, 5)
    np.testing.assert_allclose(images[0], wanted, rtol=1e-5, atol=1e-5)
