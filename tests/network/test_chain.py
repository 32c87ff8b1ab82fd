"""Blocks and chains: names, context, forward values, and what is said when something is wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import localhessian as lh

pytestmark = pytest.mark.once


def affine(params, z):
    return z @ params["kernel"]


def with_context(params, z, context):
    return z + context["shift"]


class Method:
    def apply(self, params, z, context):
        return z

    def __call__(self, params, z):
        return z


def three_blocks() -> lh.Chain:
    return lh.Chain(
        [
            lh.Block("conv1", affine),
            lh.Block("conv2", with_context),
            lh.Block("head", lambda params, z: jnp.tanh(z)),
        ]
    )


@pytest.mark.parametrize(
    ("apply", "takes"),
    [
        (lambda w, z: z, False),
        (lambda w, z, c: z, True),
        (lambda w, z, /, c: z, True),
        (lambda w, z, i=3: z, False),
        (lambda w, z, context=None: z, True),
        (lambda w, z, *, context=None: z, False),
        (lambda w, z, **options: z, False),
        (lambda *arguments: arguments[1], False),
        (functools.partial(lambda a, w, z: z, 1), False),
        (functools.partial(lambda a, w, z, c: z, 1), True),
        (Method().apply, True),
        (Method(), False),
        (jax.jit(lambda w, z, c: z), True),
        (jnp.add, False),
        (max, False),  # without a signature
    ],
)
def test_context_is_read_from_the_signature(apply, takes):
    assert lh.Block("b", apply).takes_context is takes


def test_block_hands_the_context_over_only_when_it_is_taken():
    assert lh.Block("b", lambda w, z, c: (w, z, c))(1, 2, 3) == (1, 2, 3)
    assert lh.Block("b", lambda w, z: (w, z))(1, 2, 3) == (1, 2)
    assert lh.Block("b", lambda w, z, i=7: i)(1, 2, 3) == 7


def test_blocks_of_one_function_are_equal_without_their_names():
    one, two, other = lh.Block("one", affine), lh.Block("two", affine), lh.Block("one", with_context)
    assert one != two
    assert one.anonymous == two.anonymous
    assert hash(one.anonymous) == hash(two.anonymous)
    assert one.anonymous != other.anonymous


def test_block_prints_its_name():
    assert repr(lh.Block("hidden", affine)) == "Block(name='hidden', apply=affine)"


def test_block_needs_a_function():
    with pytest.raises(TypeError, match=r"^block `b`: `apply` must be a function, got 3\.$"):
        lh.Block("b", 3)


def test_names_and_positions():
    chain = three_blocks()
    assert chain.names == ("conv1", "conv2", "head")
    assert len(chain) == 3
    assert [chain.index(name) for name in chain.names] == [0, 1, 2]


def test_chain_takes_any_iterable_and_is_static():
    blocks = (lh.Block("a", affine), lh.Block("b", affine))
    chain = lh.Chain(iter(blocks))
    assert chain == lh.Chain(list(blocks))
    assert hash(chain) == hash(lh.Chain(blocks))
    assert chain.blocks == blocks


def test_forward_returns_every_activation(key, tol):
    x, kernel = jax.random.normal(key, (5, 3)), jax.random.normal(key, (3, 2))
    z = three_blocks().forward({"conv1": {"kernel": kernel}}, x, {"shift": jnp.ones((5, 2))})
    assert len(z) == 4
    assert z[0] is x
    product = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    for actual, expected in zip(z[1:], [product, product + 1, np.tanh(product + 1)], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tol.identity * np.abs(expected).max())


def test_a_block_without_parameters_may_be_left_out():
    chain = lh.Chain([lh.Block("first", lambda params, z: (params, z))])
    assert chain.forward({}, 1)[-1] == ((), 1)


def test_activations_may_be_pytrees():
    chain = lh.Chain(
        [
            lh.Block("split", lambda w, z: {"main": z, "skip": z}),
            lh.Block("join", lambda w, z: z["main"] + z["skip"]),
        ]
    )
    np.testing.assert_array_equal(chain.forward({}, jnp.ones(2))[-1], [2, 2])


def test_forward_compiles_once_for_new_numbers(count_compilations):
    chain = three_blocks()
    forward = jax.jit(chain.forward)

    def arguments(value):
        full = functools.partial(np.full, fill_value=value, dtype=np.float32)
        return {"conv1": {"kernel": full((3, 2))}}, full((5, 3)), {"shift": full((5, 2))}

    with count_compilations() as warm:
        forward(*arguments(1.0))
    with count_compilations() as again:
        forward(*arguments(2.0))
    assert (warm.count, again.count) == (1, 0)


@pytest.mark.parametrize(("wrong", "near"), [("conv3", "conv2"), ("haed", "head"), ("Conv1", "conv1")])
def test_an_unknown_block_suggests_the_nearest(wrong, near):
    with pytest.raises(KeyError) as raised:
        three_blocks().index(wrong)
    expected = (
        f"there is no block `{wrong}` in this chain. Did you mean `{near}`? Its blocks are `conv1`, `conv2`, `head`."
    )
    assert str(raised.value) == expected


def test_an_unknown_block_like_no_other_gets_the_list_only():
    with pytest.raises(KeyError) as raised:
        three_blocks().index("zzz")
    assert str(raised.value) == "there is no block `zzz` in this chain. Its blocks are `conv1`, `conv2`, `head`."


def test_a_name_that_is_not_a_string_is_unknown_too():
    with pytest.raises(KeyError, match="there is no block `1` in this chain"):
        three_blocks().index(1)


def test_names_must_differ():
    blocks = [lh.Block(name, affine) for name in ("a", "b", "a", "c", "b")]
    expected = r"^block names must differ, but `a`, `b` occurs more than once: rename the blocks\.$"
    with pytest.raises(ValueError, match=expected):
        lh.Chain(blocks)


def test_a_chain_needs_a_block():
    with pytest.raises(ValueError, match=r"^a `Chain` needs at least one block\.$"):
        lh.Chain([])
