"""The estimates of all blocks in a step of scale-amended SGD: one small program, and numbers that a seed fixes."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax.extend.core import primitives

import localhessian as lh
from localhessian._programs import equations
from localhessian._tree import size
from localhessian.curvature import estimated_scalars, random_words
from localhessian.network import SIDES, Place


@pytest.mark.once
def test_random_signs_are_those_of_their_variables():
    """Block after block, its parameters before its input: a seed gives the same estimates in every version."""
    case, key = networks.mlp(), jax.random.key(5)
    transform = lh.scale_by_local_hessian(case.chain, case.loss, decay=0.0, probes=4)
    update = jax.jit(
        lambda params: transform.update(params, transform.init(params), params, x=case.x, y=case.y, key=key)
    )
    _, state = update(case.params)
    z, asked = case.chain.forward(case.params, case.x), []
    for b, block in enumerate(case.chain.blocks):
        place = Place(case.params[block.name], z[b], None)
        asked.append((place, [kind(block) for wrt, kind in SIDES.items() if b or wrt == "params"]))
    sizes = [sum(size(side.varied(place)) for side in sides) for place, sides in asked]
    ends = np.cumsum([0, *sizes])
    words = random_words(key, ends[-1], 4)
    for b, (place, sides) in enumerate(asked):
        last = case.loss if b == len(asked) - 1 else None
        values, _ = estimated_scalars(sides, last, "mean", place, case.y, words[:, ends[b] : ends[b + 1]], 4)
        found = [state.weight_scalars[b], state.input_scalars[b]][: len(sides)]
        np.testing.assert_allclose(found, values, rtol=1e-5)


@pytest.mark.once
def test_equal_blocks_are_estimated_by_one_program():
    """Twenty layers hold the program of three: the first, which has no input to vary, the equal ones and the last."""
    weights = jnp.eye(4)
    layer = lambda w, z: jnp.tanh(z @ w)
    chain = lh.Chain([lh.Block(f"b{i}", layer) for i in range(20)])
    params = dict.fromkeys(chain.names, weights)
    transform = lh.scale_by_local_hessian(chain, networks.squared_error)
    step = lambda params, x: transform.update(params, transform.init(params), params, x=x, y=x)[0]
    program = jax.make_jaxpr(step)(params, jnp.ones((3, 4)))
    # A product for the values, and one for the tangents of weights and inputs or of weights alone.
    products = {id(eqn) for eqn in equations(program) if eqn.primitive is primitives.dot_general_p}
    assert len(products) < 20
