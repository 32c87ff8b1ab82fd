"""Whatever is made for a model dies with it."""

import dataclasses
import gc
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import localhessian as lh
from localhessian._memory import MAX_ENTRIES, as_key, remembered

pytestmark = [pytest.mark.once, pytest.mark.relaxed]

X, Y = jnp.ones((2, 3)), jnp.zeros((2, 1))


def by_hand():
    """New functions each time, as in a notebook."""
    chain = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z @ w)), lh.Block("b", lambda w, z: z @ w)])
    return chain, {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 1))}, None


def marked():
    return lh.chain_from_function(
        lambda p, x: lh.mark(jnp.tanh(x @ p["a"]), "a") @ p["b"], {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 1))}, X
    )


def of_nnx():
    rngs = nnx.Rngs(0)
    return lh.chain_from_nnx(nnx.Sequential(nnx.Linear(3, 2, rngs=rngs), nnx.tanh, nnx.Linear(2, 1, rngs=rngs)), X)


def of_equinox():
    return lh.chain_from_equinox(eqx.nn.MLP(3, 1, 2, 1, key=jax.random.key(0)), X)


def used(make, compiled):
    """Weak references to a model's chain, blocks and loss, after much that takes them; traced only, or run."""
    chain, params, context = make()

    def loss(z, y):
        return ((z - y) ** 2).sum(1)

    def everything(params, x, y, context):
        matching = lh.back_match(chain, params, x, y, loss, context)
        operator = lh.local_hessian(matching, chain.names[-1])
        optimizer = lh.scale_amended_sgd(chain, loss, 0.1)
        updates = optimizer.update(matching.gradients, optimizer.init(params), params, x=x, y=y, context=context)
        return operator.mv(jnp.ones(operator.size)), lh.propagate(chain, params, x, y, loss, context=context), updates

    if compiled:
        lh.analyze(chain, params, X, Y, loss, context)
    else:
        jax.eval_shape(everything, params, X, Y, context)
    return [weakref.ref(thing) for thing in (chain, loss, *(block.apply for block in chain.blocks))]


def alive_after(references):
    jax.clear_caches()  # jit's own caches hold the functions that it compiled
    gc.collect()
    return [reference() for reference in references if reference() is not None]


@pytest.mark.parametrize("make", [by_hand, marked, of_nnx, of_equinox])
def test_models_die(make):
    assert alive_after(used(make, compiled=True)) == []


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.full)])
def test_many_models_die(count):
    makers = (by_hand, marked, of_nnx, of_equinox)
    assert alive_after([one for i in range(count) for one in used(makers[i % 4], compiled=False)]) == []


def test_what_is_remembered_is_bounded_and_dies_with_its_function():
    asked = []

    @remembered
    def answer(owner, argument):
        asked.append(argument)
        return owner(argument)

    def double(number):
        return 2 * number

    assert [answer(double, i) for i in (1, 2, 1)] == [2, 4, 2]
    assert asked == [1, 2]
    for i in range(MAX_ENTRIES + 5):
        assert answer(double, i) == 2 * i
    asked.clear()
    answer(double, 0)
    assert asked == [0]  # forgotten as the oldest
    gone = weakref.ref(double)
    del double
    gc.collect()
    assert gone() is None
    assert answer(slotted := Slotted(), 3) == answer(slotted, 3) == 3  # nothing can refer to it weakly


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    def __call__(self, number):
        return number


def test_a_key_of_programs_equals_what_computes_the_same():
    @dataclasses.dataclass(frozen=True)
    class Table:
        values: np.ndarray

        def __call__(self, i):
            return self.values[i]

    one, two = Table(np.arange(3)), Table(np.arange(3))
    assert as_key(one, "`f`") == as_key(one, "`f`") != as_key(two, "`f`")
    assert hash(as_key(one, "`f`")) == hash(as_key(one, "`f`"))
    assert as_key(one, "`f`")(2) == 2
    assert repr(as_key(one, "`f`")) == repr(one)
    for plain in (jnp.sin, len, [].append, Slotted()):
        assert as_key(plain, "`f`") is plain
