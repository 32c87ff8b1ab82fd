"""Every public object prints in one to five lines, compares and hashes."""

import copy
import dataclasses
import inspect

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

import localhessian as lh
from localhessian import lab
from localhessian._brief import LINES, WIDTH, brief, by_value, named

pytestmark = pytest.mark.once

NOT_MADE = {"PlannedRow", "Solver", "IdentityError", "SpectrumError", "SpectrumInterrupt", "CutError"}
"""What a plan consists of, a protocol, and errors."""


@pytest.fixture(scope="module")
def things():
    chain = lh.Chain([lh.Block("head", lambda p, z: z @ p)])
    case = chain, {"head": jnp.ones((3, 2))}, jnp.ones((4, 3)), jnp.zeros((4, 2)), networks.squared_error
    matching = lh.back_match(*case)
    operator = lh.local_hessian(matching, "head")
    dense = lh.spectrum(operator, lh.Dense(), vectors=1)
    fn = lambda p, x: lh.mark(x @ p["a"], "a") @ p["b"]
    density = lh.spectral_density(operator, probes=2, steps=3)
    report = lh.analyze(*case, wrt="params", method=lh.Dense())
    measured = lh.measure(*case, wrt="params", method=lh.Dense())
    info = lh.propagate(*case, lh.GradientStep(0.1))[1]
    stream = lh.Stream([case[2:4], case[2:4]])
    streamed = lh.back_match(*case[:2], stream, None, case[-1])
    found = [
        *(chain, chain.blocks[0], matching, operator, operator.factor, dense, report, report.rows[0]),
        *(lh.condition_number(dense), lh.summarize(dense), lh.audit(operator, dense), lh.explain(operator)),
        *(density, density.density, density.quantile_condition_number(0.05)),
        *(lh.trace(operator, lh.Hutchinson(probes=2)), measured, measured.figures, info, info.blocks["head"]),
        *(lh.plan(*case, wrt="params", method=lh.Dense()), lh.Probe(chain, networks.squared_error)),
        lh.IdentityCheck({("head", "symmetric"): 0.0}, 1e-5),
        lh.chain_from_function(fn, {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((4, 3))),
        lh.local_scalars(matching, "range_mean"),
        *(stream, streamed, lh.spread([report, report])),
        *(lh.Dense(), lh.GolubKahan(), lh.Lanczos(), lh.Structured(), lh.Hutchinson(), lh.HutchPlusPlus(), lh.XTrace()),
        *(lh.GaussNewton(), lh.GradientStep(), lh.LeastSquares(), lh.LevenbergMarquardt(), lh.ScaledGradient()),
        *(lh.OptaxSteps(optax.sgd(0.1)), lh.Status.ZERO),
    ]
    cut = found[[type(thing) for thing in found].index(lh.Cut)]
    of_zoo = [lab.zoo.Case("a", matching, cut, *case[2:]), lab.Tuned(0.1, False, {0.1: 0.5})]
    of_lab = [*of_zoo, lab.digits(), lab.digits_network("plain", jax.random.key(0)), lab.Comparison((), lab.Plan(), {})]
    return [*found, *of_lab]


def test_every_public_class_is_here(things):
    public = {value for name, value in vars(lh).items() if inspect.isclass(value) and name not in NOT_MADE}
    assert [kind for kind in public if not any(isinstance(thing, kind) for thing in things)] == []


def test_all_print_in_brief_compare_and_hash(things):
    for thing in things:
        lines = repr(thing).splitlines()
        assert 1 <= len(lines) <= LINES, thing
        assert max(map(len, lines)) <= 2 * WIDTH, thing
        assert "array(" not in repr(thing).lower()
        assert thing == thing  # noqa: PLR0124  the comparison itself is what is tested
        assert (thing == object()) is False
        assert hash(thing) == hash(thing)


def test_arrays_are_told_by_shape_and_numbers_by_value():
    @by_value
    class Pair(networks.NamedTuple):
        a: object
        b: object

    pair = Pair(np.ones((2, 3), np.float32), np.float32(0.25))
    assert repr(pair) == "Pair(a=float32[2,3], b=0.25)"
    twin = Pair(pair.a.copy(), pair.b)
    assert pair == twin
    assert hash(pair) == hash(twin)
    for other in (Pair(pair.a + 1, pair.b), Pair(pair.a[:1], pair.b), Pair([pair.a], pair.b), tuple(pair)):
        assert pair != other
    key = jax.random.key(0)
    assert Pair(key, 1) == Pair(jax.random.key(0), 1) != Pair(jax.random.key(1), 1)
    fresh = float("nan")
    for a in (fresh, np.float32(fresh), np.array([1.0, fresh]), np.array(["x"]), {"k": fresh}):
        assert Pair(a, 1) == Pair(copy.deepcopy(a), 1) != Pair(a, 2)
    assert Pair(fresh, 1) != Pair(0.0, 1)
    assert "status=CONVERGED" in repr(lh.trace(lh.symmetric_operator(lambda v: 2 * v, 3), lh.Hutchinson(probes=2)))
    assert brief(Pair({"x": 1}, [np.ones(2, np.float32), "y"])) == "Pair(a={x}, b=(float32[2], 'y'))"
    assert len(brief(Pair("z" * 10_000, tuple(range(1000))))) < 200
    seen = []
    jax.jit(lambda x: seen.append(repr(lh.Summary(x, x, x, x, x))) or x)(1.0)
    assert seen[0].startswith("Summary(trace=float")


def test_results_with_nan_equal_their_copies(things):
    """A copy holds another NaN object; dataclasses of Python 3.13 compare field by field, as numbers."""
    report = next(thing for thing in things if isinstance(thing, lh.Report))
    row = dataclasses.replace(report.rows[0], trace=float("nan"))
    twin = dataclasses.replace(row, trace=float("nan"))
    assert row == twin
    assert hash(row) == hash(twin)
    assert row != dataclasses.replace(row, trace=1.0) != row
    assert report == copy.deepcopy(report)
    nan = np.array([float("nan")])
    curve = lab.comparison.Curve(np.zeros(2), np.array([2]), nan, nan, np.ones(1))
    run = lab.Run("plain", "sgd", 0.1, 0, "final", curve)
    assert run == copy.deepcopy(run) != dataclasses.replace(run, seed=1)


def test_of_many_names_the_first_and_the_last_are_told():
    assert named(("a", "b")) == "a, b"
    assert named(tuple("abcdefghij")) == "a, b, c, d, e, ..., j"
    chain = lh.Chain([lh.Block(f"layer{i}", lambda p, z: z) for i in range(50)])
    assert repr(chain) == "Chain(50 blocks: layer0, layer1, layer2, layer3, layer4, ..., layer49)"
