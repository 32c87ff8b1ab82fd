"""Local Hessians over a stream of batches, against those of all samples in one batch."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import (
    array,
    batch_norm,
    conv,
    conv_params,
    cross_entropy,
    dense_params,
    labels,
    linear,
    normal,
    relu_dense,
)

import localhessian as lh

SIZES = (4, 4, 2)
"""Of the batches: the last one is ragged."""
N = sum(SIZES)
BLOCKS = {
    "conv": conv,
    "flat": lambda p, z: z.reshape(len(z), -1),
    "affine": linear,
    "relu": relu_dense,
    "norm": lambda p, z: z / (1 + jnp.abs(z).sum(1, keepdims=True)) * p[None],
    "head": linear,
}


@dataclasses.dataclass(frozen=True)
class Data:
    """A network at its point, in one batch and over batches."""

    chain: lh.Chain
    params: dict
    x: jax.Array
    y: jax.Array

    @property
    def batches(self):
        ends = list(itertools.accumulate(SIZES, initial=0))
        return [(self.x[a:b], self.y[a:b]) for a, b in itertools.pairwise(ends)]

    def match(self, x, y=None):
        return lh.back_match(self.chain, self.params, x, y, cross_entropy)


def data(blocks=BLOCKS):
    rng = np.random.default_rng(0)
    params = {
        "conv": conv_params(rng, 2, 3),
        "affine": dense_params(rng, 27, 4),
        "relu": dense_params(rng, 4, 5),
        "norm": array(np.linspace(0.5, 1.5, 5)),
        "head": dense_params(rng, 5, 3),
    }
    x, y = normal(rng, N, 3, 3, 2), labels(N, 3)
    chain = lh.Chain([lh.Block(name, apply) for name, apply in blocks.items()])
    return Data(chain, {name: params[name] for name in blocks if name in params}, x, y)


@pytest.fixture(scope="module")
def both():
    """The network, its matching in one batch, and over batches."""
    case = data()
    return case, case.match(case.x, case.y), case.match(lh.Stream(case.batches))


def expanded(found):
    return np.sort(np.repeat(np.asarray(found.eigenvalues, np.float64), np.asarray(found.multiplicities)))


@pytest.mark.parametrize("part", ["gauss_newton", "full"])
@pytest.mark.parametrize("block", ["conv", "relu", "head"])
def test_products_are_those_of_all_samples(both, block, part, tol):
    _, one, streamed = both
    H, S = (lh.local_hessian(matching, block, part=part) for matching in (one, streamed))
    v = jnp.asarray(np.random.default_rng(0).standard_normal(H.size), H.dtype)
    truth = np.asarray(H.mv(v))
    for operator in (S, lh.local_hessian(one, block, part=part, batch_size=4)):
        np.testing.assert_allclose(operator.mv(v), truth, atol=10 * tol.product * np.abs(truth).max())
    assert (S.size, S.dtype, S.label) == (H.size, H.dtype, H.label)


@pytest.mark.parametrize(
    ("block", "method"),
    [("conv", "Structured"), ("affine", "Structured"), ("relu", "Structured"), ("norm", "Dense"), ("head", "Dense")],
)
def test_every_eigenvalue_comes_in_one_pass(both, block, method, tol):
    """The small end too: factors are laid on each other, or Gram matrices summed in float64."""
    _, one, streamed = both
    whole, summed = (lh.spectrum(lh.local_hessian(matching, block)) for matching in (one, streamed))
    assert summed.method.startswith(method)
    assert bool(summed.complete)
    top = float(whole.lambda_max)
    np.testing.assert_allclose(expanded(summed), expanded(whole), atol=10 * tol.eigenvalue * top)
    kappas = [lh.condition_number(found) for found in (whole, summed)]
    assert int(kappas[0].rank) == int(kappas[1].rank)
    # A singular value moves by eps sigma_max, and the smallest by kappa^(1/2) times as much of itself.
    rounding = 10 * tol.eigenvalue * float(kappas[0].value) ** 0.5
    np.testing.assert_allclose(kappas[1].value, kappas[0].value, rtol=rounding)


def test_without_a_factor_the_matrices_are_summed(both, tol):
    _, one, streamed = both
    whole, summed = (
        lh.spectrum(lh.local_hessian(matching, "relu", part="full"), lh.Dense()) for matching in (one, streamed)
    )
    top = np.abs(np.asarray(whole.eigenvalues)).max()
    np.testing.assert_allclose(summed.eigenvalues, whole.eigenvalues, atol=10 * tol.eigenvalue * top)


def test_products_alone_are_enough(both):
    """Krylov methods and quadrature run on the host, a pass for each product; a program holds no stream."""
    _, one, streamed = both
    S = lh.local_hessian(streamed, "relu")
    exact = lh.spectrum(lh.local_hessian(one, "relu"))
    top = lh.spectrum(S, lh.Lanczos(which="largest", k=1))
    np.testing.assert_allclose(top.lambda_max, exact.lambda_max, rtol=1e-3)
    trace = float(lh.summarize(exact).trace)
    for probes in (4, 12):  # few, and more than are multiplied one by one where there is one batch
        mean = lh.spectral_density(S, probes=probes, steps=6).mean
        assert abs(S.size * float(mean.value) - trace) < 4 * S.size * float(mean.probe_error)
    with pytest.raises(TypeError, match="is a sum over a stream of batches, which no compiled program holds"):
        jax.jit(S.mv)(jnp.ones(S.size))


@pytest.mark.once
def test_estimates_are_those_of_one_batch(both, tol):
    """The same random vectors, so that only rounding differs: whatever multiplies, by itself or in a weighted sum."""
    _, one, streamed = both
    pair = [lh.local_hessian(m, "relu") for m in (streamed, one)]
    weighted = [lh.weighted_sum([H, H], [0.25, 0.75]) for H in pair]
    estimates = (
        lambda H: lh.trace(H, lh.Hutchinson(probes=6)),
        lambda H: lh.trace(H, lh.HutchPlusPlus(probes=6)),
        lambda H: lh.trace(H, lh.XTrace(probes=6)),
        lambda H: lh.diagonal(H, lh.Hutchinson(probes=6)),
        lambda H: lh.range_mean(H, lh.Hutchinson(probes=6)),
    )
    for estimate in estimates:
        for summed, whole in (pair, weighted):
            found, truth = (np.asarray(estimate(H).value) for H in (summed, whole))
            np.testing.assert_allclose(found, truth, atol=100 * tol.product * np.abs(truth).max())
    found, truth = (lh.spectrum(H, lh.Dense()) for H in weighted)
    np.testing.assert_allclose(found.lambda_max, truth.lambda_max, rtol=tol.eigenvalue)
    assert lh.explain(weighted[0]).method == lh.Dense()
    np.testing.assert_allclose(weighted[0].to_dense(), weighted[1].to_dense(), atol=100 * tol.product)


@pytest.mark.once
@pytest.mark.parametrize("scalar", ["mean", "range_mean", "max"])
def test_scalars_are_those_of_one_batch(both, tol, scalar):
    """Where they are exact: of other blocks the random vectors are others, batch by batch."""
    _, one, streamed = both
    truth, found = (lh.local_scalars(matching, scalar) for matching in (one, streamed))
    for wrt in ("weights", "inputs"):
        exact = getattr(found, f"exact_{wrt}")
        assert list(exact) == list(getattr(truth, f"exact_{wrt}"))
        ours, wanted = (np.asarray(getattr(scalars, wrt))[exact] for scalars in (found, truth))
        assert exact.sum() >= 4
        np.testing.assert_allclose(ours, wanted, rtol=10 * tol.eigenvalue)


def test_measure_finds_what_it_finds_in_one_batch(both, tol):
    case, _, _ = both
    measured = [
        lh.measure(case.chain, case.params, *data, cross_entropy, blocks=("affine", "head"), samples=(1, 9))
        for data in ((case.x, case.y), (lh.Stream(case.batches), None))
    ]
    for name in ("kappa_plus", "lambda_max", "rank", "trace"):
        truth, found = (getattr(one.figures, name) for one in measured)
        np.testing.assert_allclose(found, truth, rtol=1e3 * tol.eigenvalue)  # kappa_plus by its small end
    entries = [[dataclasses.replace(entry, method="") for entry in one.entries] for one in measured]
    assert entries[0] == entries[1]


def test_what_takes_one_batch_says_so(both):
    case, _, streamed = both
    with pytest.raises(TypeError, match=r"what `lh\.back_match` returns for one batch, got a `StreamMatching`"):
        lh.back_matching_loss(streamed, "relu")
    stream, rest = lh.Stream(case.batches), (case.chain, cross_entropy)
    optimizer = lh.scale_by_local_hessian(*rest)
    state = optimizer.init(case.params)
    asked = {
        "check_identities": lambda: lh.check_identities(case.chain, case.params, stream, None, cross_entropy),
        "propagate": lambda: lh.propagate(case.chain, case.params, stream, None, cross_entropy),
        "Probe": lambda: lh.Probe(*rest)(0, case.params, stream, None),
        "scale_by_local_hessian": lambda: optimizer.update(case.params, state, case.params, x=stream, y=None),
    }
    for name, ask in asked.items():
        with pytest.raises(TypeError, match=f"`{name}` takes one batch, and no stream: pass its batches one by one"):
            ask()
    for ask in (lh.back_match, lh.measure):
        with pytest.raises(TypeError, match="a stream is gone through on the host, and no compiled program holds one"):
            jax.jit(lambda params, ask=ask: ask(case.chain, params, stream, None, cross_entropy))(case.params)


@pytest.mark.once
def test_samples_come_out_of_their_batches(both, tol):
    _, one, streamed = both
    for block in ("relu", "head"):
        truth, found = (lh.local_hessian(m, block, "input", samples=[9, 1, 4]).to_dense() for m in (one, streamed))
        np.testing.assert_allclose(found, truth, atol=10 * tol.product * np.abs(truth).max())
    single = lh.local_hessian(streamed, "relu", "input", samples=-1).to_dense()
    np.testing.assert_allclose(single, lh.local_hessian(one, "relu", "input", samples=9).to_dense(), atol=tol.product)
    with pytest.raises(ValueError, match="name some by `samples=`"):
        lh.local_hessian(streamed, "relu", "input")


def test_what_sums_over_samples_is_summed(both, tol):
    case, one, streamed = both
    assert (streamed.samples, streamed.batches) == (N, 3)
    np.testing.assert_allclose(streamed.objective, one.objective, rtol=tol.identity)
    for name in case.params:
        for mine, truth in zip(*(jax.tree.leaves(m.gradients[name]) for m in (streamed, one)), strict=True):
            np.testing.assert_allclose(mine, truth, atol=tol.identity)


def test_a_ragged_batch_compiles_once_more_and_other_batches_nothing(both, count_compilations):
    case, _, streamed = both
    S = lh.local_hessian(streamed, "relu")
    v = jnp.ones(S.size)
    S.mv(v)
    longer = case.match(lh.Stream([*case.batches[:2], *case.batches]))
    with count_compilations() as seen:
        S.mv(v)
        lh.local_hessian(longer, "relu").mv(v)
    assert seen.names == []


@pytest.mark.once
def test_loaders_begin_anew_and_functions_return_one(both, tol):
    case, one, _ = both
    truth = lh.local_hessian(one, "head").to_dense()

    class Loader:
        def __iter__(self):
            return ((np.asarray(x), np.asarray(y)) for x, y in case.batches)

    for batches in (Loader(), lambda: iter(case.batches)):
        found = lh.local_hessian(case.match(lh.Stream(batches, batch_size=3)), "head").to_dense()
        np.testing.assert_allclose(found, truth, atol=10 * tol.product * np.abs(truth).max())


@pytest.mark.once
def test_context_of_samples_goes_with_them(tol):
    """The mask belongs to the samples, the scale to none; by the batch, or cut with it."""
    block = lambda w, z, context: jnp.tanh(z @ w) * context["mask"] * context["scale"][None]
    chain = lh.Chain([lh.Block("a", block), lh.Block("b", lambda w, z: z @ w)])
    rng = np.random.default_rng(1)
    params = {"a": normal(rng, 3, 4), "b": normal(rng, 4, 2)}
    x, y, mask = normal(rng, 7, 3), labels(7, 2), array(rng.random((7, 4)) < 0.5)
    of = lambda part: {"mask": mask[part], "scale": jnp.linspace(1.0, 2.0, 4)}
    whole = lh.back_match(chain, params, x, y, cross_entropy, of(slice(None)))
    truth = lh.local_hessian(whole, "a").to_dense()
    batches = [(x[part], y[part], of(part)) for part in (slice(0, 4), slice(4, 7))]
    streams = (lh.Stream(batches), lh.Stream([(x, y, of(slice(None)))], batch_size=3))
    for stream in streams:
        matching = lh.back_match(chain, params, stream, None, cross_entropy)
        np.testing.assert_allclose(lh.local_hessian(matching, "a").to_dense(), truth, atol=10 * tol.product)
        found, sample = (lh.local_hessian(m, "a", "input", samples=[5]).to_dense() for m in (matching, whole))
        np.testing.assert_allclose(found, sample, atol=10 * tol.product)


@pytest.mark.once
def test_batches_that_couple_their_samples_are_refused_unless_their_own_are_meant(tol):
    rng = np.random.default_rng(1)
    params = {"a": dense_params(rng, 3, 4), "norm": {"gamma": array(np.ones(4)), "beta": array(np.zeros(4))}}
    params |= {"b": dense_params(rng, 4, 2)}
    blocks = {"a": linear, "norm": batch_norm, "b": linear}
    chain = lh.Chain([lh.Block(name, apply) for name, apply in blocks.items()])
    x, y = normal(rng, 9, 3), labels(9, 2)
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    match = lambda *data: lh.back_match(chain, params, *data, cross_entropy)
    matching = match(lh.Stream(batches), None)
    whole = match(x, y)
    # What lies below is of no other batch.
    below = lh.local_hessian(matching, "a").to_dense()
    np.testing.assert_allclose(below, lh.local_hessian(whole, "a").to_dense(), atol=10 * tol.product)
    for block in ("norm", "b"):
        with pytest.raises(ValueError, match=r"block `norm` couples the samples of a batch .* per_batch=True"):
            lh.local_hessian(matching, block)
    with pytest.raises(ValueError, match="block `norm` couples"):
        lh.local_hessian(matching, "b", "input", samples=[0])
    own = [lh.local_hessian(match(*batch), "b").to_dense() for batch in batches]
    of_each = match(lh.Stream(batches, per_batch=True), None)
    mean = lh.local_hessian(of_each, "b").to_dense()
    np.testing.assert_allclose(mean, 6 / 9 * own[0] + 3 / 9 * own[1], atol=10 * tol.product)
    with pytest.raises(ValueError, match="block `norm` couples"):
        lh.local_scalars(matching)
    scalars, *parts = (lh.local_scalars(one) for one in (of_each, *(match(*batch) for batch in batches)))
    for ours, first, second in zip(scalars[:2], parts[0], parts[1], strict=False):
        np.testing.assert_allclose(ours, 6 / 9 * first + 3 / 9 * second, rtol=100 * tol.product)


@pytest.mark.once
def test_what_is_no_stream_is_named(both):
    case, one, streamed = both
    batches = case.batches
    with pytest.raises(TypeError, match=r"is a generator, which can be gone through only once, .*`lambda: loader\(\)`"):
        lh.Stream(batch for batch in batches)
    with pytest.raises(ValueError, match="`batches` is empty"):
        lh.Stream([])
    with pytest.raises(TypeError, match=r"`batches` must hold \(x, y\) or \(x, y, context\)"):
        lh.Stream([case.x])
    with pytest.raises(ValueError, match="`y` must be None where `x` is a stream"):
        case.match(lh.Stream(batches), case.y)
    with pytest.raises(ValueError, match='`batch_size` belongs to wrt="params"'):
        lh.local_hessian(one, "relu", "input", batch_size=2)
    with pytest.raises(ValueError, match="say it to the stream"):
        lh.local_hessian(streamed, "relu", batch_size=2)
    once = iter(batches)
    with pytest.raises(ValueError, match="gave 0 samples, and 10 the first time"):
        lh.local_hessian(case.match(lh.Stream(lambda: once)), "relu").mv(jnp.ones(25))
