"""Structured spectra against dense float64 on fuzzed layers of every kind, and layers that must be declined."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layers import ACTIVATIONS, KINDS, block_hessian, close, normed, parameters, pooled, tokens_and_places

import localhessian as lh
from localhessian.lab import zoo
from localhessian.linalg import matrix_map
from localhessian.linalg.structure import _moves


@st.composite
def convolutions(draw):
    """Settings of a convolution with 1 or 2 spatial dimensions."""
    dims = draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    window = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    pads = st.tuples(st.integers(-1, 2), st.integers(0, 2))
    return {
        "dims": dims,
        "groups": groups,
        "fan_in": groups * draw(st.integers(1, 2)),
        "fan_out": groups * draw(st.integers(1 if groups > 1 else 2, 3)),
        "window": window,
        "size": tuple(draw(st.integers(5, 6)) for _ in range(dims)),
        "strides": tuple(draw(st.integers(1, 2)) for _ in range(dims)),
        "padding": draw(st.sampled_from(["SAME", "VALID", [draw(pads) for _ in range(dims)]])),
        "lhs_dilation": tuple(draw(st.sampled_from([1, 1, 2])) for _ in range(dims)),
        "rhs_dilation": tuple(draw(st.sampled_from([1, 1, 2])) for _ in range(dims)),
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "bias": draw(st.booleans()),
        "norm": draw(st.sampled_from(["none", "batch", "fixed"])),
    }


def convolution(case):
    """A block of these settings with its parameters and input."""
    dims, groups = case["dims"], case["groups"]
    layout = ("NHWC", "HWIO", "NHWC") if dims == 2 else ("NWC", "WIO", "NWC")
    padding = case["padding"]
    if isinstance(padding, str) and max(case["lhs_dilation"]) > 1:
        padding = [(1, 1)] * dims

    def apply(params, z):
        u = jax.lax.conv_general_dilated(
            z,
            params["kernel"],
            case["strides"],
            padding,
            case["lhs_dilation"],
            case["rhs_dilation"],
            layout,
            groups,
        )
        lead = (None,) * (u.ndim - 1)
        if case["bias"]:
            u = u + params["bias"][lead]
        if case["norm"] == "batch":
            u = networks.batch_norm(params, u)
        elif case["norm"] == "fixed":
            u = u * params["gamma"][lead] * 0.7 + params["beta"][lead]
        return ACTIVATIONS[case["activation"]](u)

    out = case["fan_out"]
    params = {"kernel": networks.drawn(1, *case["window"], case["fan_in"] // groups, out) / 2}
    if case["bias"]:
        params["bias"] = networks.drawn(2, out)
    if case["norm"] != "none":
        params |= {"gamma": 1 + networks.drawn(3, out) / 4, "beta": networks.drawn(4, out)}
    return apply, params, networks.drawn(5, 3, *case["size"], case["fan_in"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # `tol` is a constant
@given(case=convolutions())
def test_convolutions_of_every_kind(tol, case):
    apply, params, z = convolution(case)
    operator = block_hessian(apply, params, z)
    close(lh.spectrum(operator, lh.Structured()), operator.to_dense(), tol)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("n", [3, 9], ids=["dual", "primal"])
def test_dense_layers(tol, activation, n):
    def apply(params, z):
        return ACTIVATIONS[activation](networks.linear(params, z))

    params = {"kernel": networks.drawn(0, 5, 4), "bias": networks.drawn(1, 4)}
    z = networks.drawn(2, n, 5)
    operator = block_hessian(apply, params, z)
    spectrum = lh.spectrum(operator, lh.Structured())
    close(spectrum, operator.to_dense(), tol)
    if activation == "none":
        assert set(np.asarray(spectrum.multiplicities)[np.asarray(spectrum.eigenvalues) > 0].tolist()) == {4}
        assert len(lh.explain(operator).structure.units) == 1
    of_samples = block_hessian(apply, params, z, "input", samples=[0, 2])
    both = lh.spectrum(of_samples, lh.Structured())
    for s, matrix in enumerate(np.asarray(of_samples.to_dense())):
        one = jax.tree.map(lambda leaf, s=s: leaf[s] if jnp.ndim(leaf) else leaf, both)
        close(one, matrix, tol)
    whole = block_hessian(apply, params, z, "input")
    close(lh.spectrum(whole, lh.Structured()), whole.to_dense(), tol)


@pytest.mark.parametrize("kind", KINDS)
def test_other_forms_of_a_layer(tol, kind):
    apply, of = KINDS[kind]
    operator = block_hessian(apply, parameters(of), networks.drawn(4, 6, 5))
    close(lh.spectrum(operator, lh.Structured()), operator.to_dense(), tol)


def test_pooling_after_a_convolution(tol):
    params = {"kernel": networks.drawn(0, 3, 3, 2, 3) / 3, "bias": networks.drawn(1, 3)}
    operator = block_hessian(pooled, params, networks.drawn(2, 4, 4, 4, 2))
    close(lh.spectrum(operator, lh.Structured()), operator.to_dense(), tol)


def test_an_identity_skip_around_a_layer_in_its_input(tol):
    params = {"kernel": networks.drawn(0, 5, 5), "bias": networks.drawn(1, 5)}
    operator = block_hessian(networks.skip_dense, params, networks.drawn(2, 4, 5), "input", samples=[0, 1, 3])
    spectrum = lh.spectrum(operator, lh.Structured())
    exact = np.linalg.eigvalsh(np.asarray(operator.to_dense(), np.float64))
    np.testing.assert_allclose(spectrum.eigenvalues, exact, atol=10 * tol.eigenvalue * exact.max())


def test_embeddings(tol):
    params = {"table": networks.drawn(0, 6, 4), "places": networks.drawn(1, 3, 4)}
    tokens = jnp.asarray([[0, 1, 1], [2, 0, 5], [1, 1, 1]])
    table = block_hessian(lambda p, z: p["table"][z], {"table": params["table"]}, tokens)
    close(lh.spectrum(table, lh.Structured()), table.to_dense(), tol)
    both = block_hessian(tokens_and_places, params, tokens)
    assert lh.explain(both).structure.different == 1
    close(lh.spectrum(both, lh.Structured()), both.to_dense(), tol)


def test_a_table_of_which_few_rows_are_used(tol, monkeypatch):
    """As that of a language model, whose elements are more than float32 can number."""
    monkeypatch.setattr(_moves, "EXACT_INTEGERS", 100)
    params = {"table": networks.drawn(0, 40, 4), "places": networks.drawn(1, 3, 4)}
    operator = block_hessian(tokens_and_places, params, jnp.asarray([[0, 1, 39], [2, 0, 5]]))
    close(lh.spectrum(operator, lh.Structured()), operator.to_dense(), tol)


@pytest.mark.parametrize("loss", [networks.cross_entropy, networks.squared_error])
@pytest.mark.parametrize("n", [4, 30], ids=["rows", "variables"])
def test_the_last_block(tol, loss, n):
    matching = lh.back_match(*networks.mlp(n=n, loss=loss))
    for wrt in ("params", "input"):
        operator = lh.local_hessian(matching, "head", wrt)
        close(lh.spectrum(operator, lh.Structured()), operator.to_dense(), tol)


def test_variables_that_nothing_uses_are_zeros(tol):
    params = {"kernel": networks.drawn(0, 5, 4), "bias": networks.drawn(1, 4), "spare": networks.drawn(2, 3)}
    operator = block_hessian(networks.tanh_dense, params, networks.drawn(3, 9, 5))
    spectrum = lh.spectrum(operator, lh.Structured())
    close(spectrum, operator.to_dense(), tol)
    assert int(lh.condition_number(spectrum).rank) == 24


def test_rank_one_and_dead_units(tol):
    """One sample; a ReLU that is off everywhere for one channel."""
    params = {"kernel": networks.drawn(0, 5, 4), "bias": jnp.asarray([0.0, 0.0, -100.0, 0.0])}
    for n in (1, 6):
        operator = block_hessian(networks.relu_dense, params, networks.drawn(2, n, 5))
        close(lh.spectrum(operator, lh.Structured()), operator.to_dense(), tol)


@pytest.mark.skipif(jnp.result_type(float) != jnp.float32, reason="of float32 numbers")
@pytest.mark.parametrize("kappa", [1e4, 1e6, 1e8, 1e10])
def test_the_small_end_from_float32(kappa):
    """lambda_min of H = I x C within 1e-3 at kappa 1e8 and 1e-2 at 1e10, from float32 inputs."""
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.standard_normal((40, 12)))[0]
    right = np.linalg.qr(generator.standard_normal((12, 12)))[0]
    inputs = jnp.asarray(left * np.geomspace(1, kappa**-0.5, 12) @ right.T, jnp.float32)
    params = jnp.zeros((12, 3), jnp.float32)
    operator = block_hessian(lambda w, z: z @ w, params, inputs)
    spectrum = lh.spectrum(operator, lh.Structured())
    exact = np.linalg.svd(np.asarray(inputs, np.float64), compute_uv=False) ** 2 / 40
    found = float(lh.condition_number(spectrum, rtol=1e-7).value)
    assert abs(found / (exact[0] / exact[-1]) - 1) < (1e-3 if kappa <= 1e8 else 1e-2)


def mixing_norm(params, z):
    u = networks.linear(params, z)
    return (u - jnp.mean(u, 1, keepdims=True)) / jnp.std(u, 1, keepdims=True)


DECLINED = {
    "used twice": (lambda p, z: jnp.tanh(z @ p["kernel"]) @ p["kernel"].T, "params", "product mixes channels"),
    "two products": (
        lambda p, z: z @ p["kernel"] + jnp.roll(z, 1, 1) @ p["kernel"],
        "params",
        "they enter by more than one product",
    ),
    "mixed by another map": (
        lambda p, z: jnp.tanh(z @ p["kernel"]) @ jnp.ones((4, 4), z.dtype),
        "params",
        "a second product mixes channels",
    ),
    "a skip that is not the identity": (
        lambda p, z: z @ jnp.triu(jnp.ones((5, 5), z.dtype)) + jnp.tanh(z @ jnp.eye(5, dtype=z.dtype)),
        "input",
        "they enter by more than one product",
    ),
    "a running sum": (lambda p, z: jnp.cumsum(jnp.tanh(z @ p["kernel"]), 1), "params", "it applies `cumsum`"),
    "a rolled skip": (lambda p, z: jnp.roll(z, 1, 1) + jnp.tanh(z @ jnp.eye(5, dtype=z.dtype)), "input", None),
}


@pytest.mark.parametrize("kind", DECLINED)
def test_what_looks_like_a_layer_and_is_none_is_declined_or_right(tol, kind):
    apply, wrt, reason = DECLINED[kind]
    operator = block_hessian(apply, {"kernel": networks.drawn(0, 5, 4)}, networks.drawn(1, 6, 5), wrt)
    explanation = lh.explain(operator)
    if reason is not None:
        assert reason in explanation.reason
        assert explanation.structure is None
    exact = np.linalg.eigvalsh(np.asarray(operator.to_dense(), np.float64))
    spectrum = lh.spectrum(operator)
    found = np.repeat(np.asarray(spectrum.eigenvalues), np.asarray(spectrum.multiplicities))
    np.testing.assert_allclose(found, exact, atol=10 * tol.eigenvalue * exact[-1])


def test_channels_mixed_by_a_normalization_take_the_rows(tol):
    params = {"kernel": networks.drawn(0, 5, 4), "bias": networks.drawn(1, 4)}
    operator = block_hessian(mixing_norm, params, networks.drawn(2, 6, 5))
    assert "Khatri-Rao" in lh.explain(operator).reason
    close(lh.spectrum(operator), operator.to_dense(), tol)


def test_a_parameter_of_all_units_is_declined():
    operator = block_hessian(
        lambda p, z: jnp.tanh(z @ p["kernel"]) * p["gain"][None],
        {"kernel": networks.drawn(0, 5, 4), "gain": networks.drawn(1, 1)},
        networks.drawn(2, 6, 5),
    )
    assert "one variable serves several units" in lh.explain(operator).reason


def test_full_parts_and_plain_matrices_are_declined():
    matching = lh.back_match(*networks.mlp())
    full = lh.local_hessian(matching, "layer0", part="full")
    assert "it has no factor" in lh.explain(full).reason
    plain = matrix_map(networks.drawn(0, 4, 3))
    assert "nothing in it splits" in lh.explain(plain).reason
    with pytest.raises(ValueError, match=r"`Structured` declines the operator: nothing in it splits. Use another"):
        lh.spectrum(plain, lh.Structured())


ENDS = {
    "equal blocks": lambda: block_hessian(networks.linear, parameters("dense"), networks.drawn(4, 9, 5)),
    "dual": lambda: block_hessian(networks.tanh_dense, parameters("dense"), networks.drawn(4, 3, 5)),
    "normalized": lambda: block_hessian(normed, parameters("norm"), networks.drawn(4, 9, 5)),
    "a dead unit": lambda: block_hessian(
        networks.relu_dense,
        parameters("dense") | {"bias": jnp.asarray([0.0, 0.0, -100.0, 0.0])},
        networks.drawn(4, 9, 5),
    ),
    "samples": lambda: block_hessian(
        networks.tanh_dense, parameters("dense"), networks.drawn(4, 6, 5), "input", samples=[0, 2, 3]
    ),
    "rows": lambda: lh.local_hessian(lh.back_match(*networks.mlp(n=4)), "head"),
    "nothing": lambda: block_hessian(networks.linear, parameters("dense"), jnp.zeros((3, 5))[:, :5] * 0),
}


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
@pytest.mark.parametrize("case", ENDS)
def test_the_ends_without_the_whole(tol, case, which):
    operator = ENDS[case]()
    found = lh.spectrum(operator, lh.Structured(blocks=lh.GolubKahan(which=which, k=1, rtol=1e-6)))
    exact = lh.spectrum(operator, lh.Structured())
    for s in range(operator.batch or 1):
        values, truth = (row(spectrum.singular_values, s) for spectrum in (found, exact))
        top = truth[-1]
        if which != "smallest":
            np.testing.assert_allclose(values[-1], top, atol=10 * tol.eigenvalue * top)
        if which != "largest":
            nonzero = [part[part > 100 * jnp.finfo(operator.dtype).eps * top] for part in (values, truth)]
            np.testing.assert_allclose(nonzero[0][:1], nonzero[1][:1], rtol=1e-3)
    assert int(np.max(found.status)) == lh.Status.CONVERGED


def row(values, s):
    """The values of one map, where there are any."""
    one = np.asarray(values, np.float64).reshape(-1, values.shape[-1])[s]
    return one[np.isfinite(one)]


def test_blocks_that_are_multiplied_at_once_are_counted():
    """Copies of one block are one row of the batch, and their number is the multiplicity."""
    operator = block_hessian(networks.linear, parameters("dense"), networks.drawn(4, 9, 5))
    found = lh.spectrum(operator, lh.Structured(blocks=lh.GolubKahan(which="largest", k=1, basis_size=4)))
    assert np.asarray(found.multiplicities)[-1] == 4


@pytest.mark.full
@pytest.mark.parametrize(("name", "block"), [("mlp", "layers.1"), ("vgg13-bn/4", "layers.1")])
def test_agrees_with_golub_kahan_at_scale(name, block):
    """Of 262,656 and 9,280 variables: the largest values by three routes, and the audit of none needed."""
    case = zoo.case(name)
    matching = lh.back_match(case.cut.chain, case.cut.params, case.x, case.y, case.loss, case.cut.context)
    operator = lh.local_hessian(matching, block)
    whole = lh.spectrum(operator, lh.Structured())
    ends = lh.spectrum(operator, lh.Structured(blocks=lh.GolubKahan(which="largest", k=2, rtol=1e-4)))
    general = lh.spectrum(operator, lh.GolubKahan(which="largest", k=2, rtol=1e-4))
    assert bool(whole.complete)
    assert not bool(ends.complete)
    for other in (ends, general):
        assert bool(other.converged)
        # An error of rtol sigma in the singular value, squared in its eigenvalue where it is apart from others.
        np.testing.assert_allclose(other.eigenvalues[-2:], whole.eigenvalues[-2:], rtol=1e-4)
    trace = lh.trace(operator, lh.Hutchinson(probes=16))
    exact = float(np.sum(np.asarray(whole.eigenvalues, np.float64) * np.asarray(whole.multiplicities)))
    assert abs(float(trace.value) - exact) < 6 * float(trace.standard_error)


def test_a_loss_without_curvature_gives_zeros():
    """Log-probabilities as outputs: the loss is linear in them, and the last block's Gauss-Newton part vanishes."""
    case = networks.mlp()
    chain = lh.Chain(
        [*case.chain.blocks[:-1], lh.Block("head", lambda w, z: jax.nn.log_softmax(networks.linear(w, z)))]
    )
    loss = lambda z, y: -jnp.take_along_axis(z, y[:, None], 1)[:, 0]
    matching = lh.back_match(chain, case.params, case.x, case.y, loss)
    for wrt in ("params", "input"):
        operator = lh.local_hessian(matching, "head", wrt)
        spectrum = lh.spectrum(operator)
        np.testing.assert_array_equal(spectrum.eigenvalues, np.zeros_like(spectrum.eigenvalues))
        assert int(np.sum(spectrum.multiplicities)) == operator.size
        assert bool(spectrum.complete)
        assert "Structured" in spectrum.method


def test_under_jit_the_values_are_the_same(tol):
    case = networks.mlp()

    @jax.jit
    def top(params):
        matching = lh.back_match(case.chain, params, case.x, case.y, case.loss)
        return lh.spectrum(lh.local_hessian(matching, "layer0")).lambda_max

    operator = lh.local_hessian(lh.back_match(*case), "layer0")
    exact = lh.spectrum(operator).lambda_max
    np.testing.assert_allclose(top(case.params), exact, rtol=10 * tol.eigenvalue)


def test_limits_and_vectors():
    operator = lh.local_hessian(lh.back_match(*networks.mlp()), "layer0")
    with pytest.raises(ValueError, match="but `max_size` = 2 is less than the 5 needed"):
        lh.spectrum(operator, lh.Structured(max_size=2))
    with pytest.raises(ValueError, match="no eigenvectors"):
        lh.spectrum(operator, lh.Structured(), vectors=1)
    assert lh.spectrum(operator, vectors=1).vectors.shape == (30, 1)


def test_nan_is_not_taken_for_structure():
    params = {"kernel": networks.drawn(0, 5, 4).at[0, 0].set(jnp.nan), "bias": networks.drawn(1, 4)}
    jacobian = jnp.tanh(networks.drawn(2, 6, 5) @ params["kernel"])
    operator = matrix_map(jnp.where(jnp.isnan(jacobian), jnp.nan, jacobian))
    with pytest.raises(lh.SpectrumError, match="finite"):
        lh.spectrum(operator)


@pytest.mark.once
def test_a_small_budget_leaves_patches_folded(tol):
    """Rows are unfolded when they are taken: the same values, and less memory."""
    params = {
        "kernel": networks.drawn(0, 3, 3, 2, 3) / 3,
        "bias": networks.drawn(1, 3),
        "gamma": networks.drawn(2, 3),
        "beta": networks.drawn(3, 3),
    }

    def apply(p, z):
        return jax.nn.relu(networks.batch_norm(p, networks.conv(p, z)))

    operator = block_hessian(apply, params, networks.drawn(4, 40, 16, 16, 2))
    itemsize = operator.dtype.itemsize
    whole, folded = lh.Structured(), lh.Structured(max_bytes=1.8e6 + 1e5 * itemsize)
    close(lh.spectrum(operator, folded), operator.to_dense(), tol)
    assert lh.explain(operator, folded).bytes < lh.explain(operator, whole).bytes


@pytest.mark.once
def test_a_head_of_too_many_classes_is_declined_before_its_rows_are_made():
    matching = lh.back_match(*networks.mlp(n=30))
    head = lh.local_hessian(matching, "head")
    with pytest.raises(ValueError, match="it sums over different units"):
        lh.spectrum(head, lh.Structured(max_bytes=1000))
