"""Which leaves of labels and context belong to single samples, and which samples are meant."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import localhessian as lh
from localhessian.network import first_samples, sample_indices
from localhessian.network._per_sample import belongs_to_samples


def entropy(z, label):
    return networks.cross_entropy(z, label)


def flags(loss, y, n=4, classes=4):
    z = jax.ShapeDtypeStruct((n, classes), jnp.result_type(float))
    return belongs_to_samples(_of_loss[loss], (), z, y, n, 2)


_of_loss = {
    "labels": entropy,
    "class weights": lambda z, y: entropy(z, y[0]) * y[1][y[0]],
    "sample weights": lambda z, y: entropy(z, y[0]) * y[1],
    "normalized": lambda z, y: entropy(z, y[0]) * y[1] / y[1].mean(),
    "temperature": lambda z, y: entropy(z / y[1], y[0]),
    "of classes": lambda z, y: entropy(z + y[1][None], y[0]),
    "by rank": lambda z, y: entropy(z, y[0]) * jnp.arange(1.0, 5.0)[: len(z)].astype(z.dtype),
}


@pytest.mark.relaxed
def test_as_many_classes_as_samples():
    """Everything has a leading axis of four: what belongs to the samples is what moves with them."""
    labels, four = jnp.arange(4), jnp.array([1.0, 10.0, 100.0, 1000.0])
    assert flags("labels", labels) == (True,)
    assert flags("class weights", (labels, four)) == (True, False)
    assert flags("sample weights", (labels, four)) == (True, True)
    assert flags("normalized", (labels, four)) == (True, True)
    assert flags("temperature", (labels, jnp.asarray(2.0))) == (True, False)
    assert flags("of classes", (labels, four)) == (True, False)
    assert flags("by rank", (labels, four)) is None  # no order of the samples is like another


@pytest.mark.relaxed
def test_what_is_taken_whole_belongs_to_no_sample():
    """As many channels as there are samples: by seven traces instead of 64. What is not used may belong."""
    traces = []

    def normalized(z, statistics):
        traces.append(1)
        return z - sum(statistics)[None]

    like = jax.ShapeDtypeStruct((4, 4), jnp.result_type(float))
    assert belongs_to_samples(normalized, (), like, [jnp.ones(4)] * 6, 4, 2) == (False,) * 6
    assert len(traces) == 7
    with_labels = lambda z, y: z.sum(1) + (traces.append(1) or y)
    assert belongs_to_samples(with_labels, (), like, jnp.ones(4), 4, 2) == (True,)
    assert len(traces) == 7 + 2  # cut, and whole: what does not fit once is not tried again
    unused = lambda z, y: z.sum(1) + 0 * y["table"].sum()
    assert belongs_to_samples(unused, (), like, {"label": jnp.arange(4), "table": jnp.ones(3)}, 4, 2) == (True, False)


def test_the_first_samples_have_their_masks():
    case = networks.mlp(n=6)
    chain = lh.Chain([lh.Block("masked", lambda p, z, context: z * context["mask"] + context["table"][None])])
    context = {"mask": jnp.arange(24.0).reshape(6, 4), "table": jnp.ones(4)}
    loss = lambda z, y: z.sum(1) * y
    x, y, where = first_samples(chain, loss, {}, case.x, jnp.arange(6.0), context, 2)
    np.testing.assert_array_equal(where["mask"], context["mask"][:2])
    assert (len(x), len(y), len(where["table"])) == (2, 2, 4)
    told = first_samples(chain, loss, {}, case.x, jnp.arange(6.0), context, 2, lambda path: "table" not in path)
    assert jax.tree.map(jnp.shape, told) == jax.tree.map(jnp.shape, (x, y, where))
    with pytest.raises(ValueError, match=r"`context\['table'\]` belongs to the 6 samples, but its shape is \(4,\)"):
        first_samples(chain, loss, {}, case.x, jnp.arange(6.0), context, 2, lambda path: True)


def test_a_batch_that_is_baked_in_is_taken_whole():
    chain = lh.Chain([lh.Block("rigid", lambda p, z: z.reshape(6, 4))])
    x = jnp.ones((6, 4))
    assert len(first_samples(chain, lambda z, y: z.sum(1) * y, {}, x, jnp.ones(6), None, 2)[0]) == 6


def test_indices_of_samples():
    found = lambda samples: (sample_indices(samples, 5)[0].tolist(), sample_indices(samples, 5)[1])
    assert found(4) == found(np.int64(4)) == found(np.array(4)) == found(-1) == ([4], True)
    assert found([2, 0, 2]) == found(np.array([2, 0, 2])) == found((2, -5, jnp.array(2))) == ([2, 0, 2], False)
    assert found(range(2)) == ([0, 1], False)
    assert found([True, False, True, False, False]) == ([0, 2], False)


NO_INDEX = (5, -6, [0, 5], [], 1.0, [0.5], True, [True, False], np.zeros((2, 2), int), [[0], [1, 2]], "a", [False] * 5)


@pytest.mark.parametrize("samples", NO_INDEX)
def test_what_is_no_index_is_refused(samples):
    with pytest.raises(ValueError, match="`samples` must be an index, a sequence of indices or a boolean mask of leng"):
        sample_indices(samples, 5)
