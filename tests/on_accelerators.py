"""Every device program lowers for CUDA and TPU as it is traced there: without the host, and in the model's precision.

`test_devices.py` runs this last in a process of its own: what is remembered of a device must not reach other tests.
"""

import jax
import networks
import optax
import pytest

import localhessian as lh
from localhessian.analysis import _survey

CASE = networks.convolutional()
SAMPLES = (0, 1)


def at(function):
    """A program of parameters and inputs, of what is found at the back-matching there."""
    return lambda params, x: function(lh.back_match(CASE.chain, params, x, CASE.y, CASE.loss))


def spectrum(method, *where, vectors=0, **how):
    return at(lambda matching: lh.spectrum(lh.local_hessian(matching, *where, **how), method, vectors=vectors))


def figure(function, *where, **how):
    return at(lambda matching: function(lh.local_hessian(matching, *where, **how)))


def measured(params, x):
    return lh.measure(CASE.chain, params, x, CASE.y, CASE.loss, samples=SAMPLES, blocks="conv2")


def of_many(params, x):
    """As a sweep runs it: for several networks at once."""
    gains = jax.numpy.array([0.5, 1.0])
    return jax.vmap(lambda gain: measured(jax.tree.map(lambda leaf: gain * leaf, params), x))(gains)


def attentions():
    """Two blocks that are alike, without structure."""
    case = networks.transformer()
    embed, attention, head = case.chain.blocks
    chain = lh.Chain([embed, attention, lh.Block("again", attention.apply), head])
    return case._replace(chain=chain, params=case.params | {"again": case.params["attention"]})


def surveyed(params, x):
    """Of large blocks the largest eigenvalues and a quadrature, of those that are alike by one iteration."""
    case = attentions()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_survey, "TRACED_OPERATIONS", 1.0)
        return lh.measure(case.chain, params, x, case.y, case.loss, blocks=("attention", "again"), wrt="params")


def propagated(solver, **how):
    return lambda params, x: lh.propagate(CASE.chain, params, x, CASE.y, CASE.loss, solver, **how)


def amended(scalar):
    def step(params, x):
        optimizer = lh.scale_amended_sgd(CASE.chain, CASE.loss, 0.1, scalar=scalar)
        gradients = jax.grad(lambda params: CASE.loss(CASE.chain.forward(params, x)[-1], CASE.y).mean())(params)
        return optimizer.update(gradients, optimizer.init(params), params, x=x, y=CASE.y)

    return step


def loss_of_block(matching):
    return lh.back_matching_loss(matching, "conv2")(matching.params["conv2"], matching.activations[2])


def derivatives(params, x):
    """Of a condition number, and of a largest eigenvalue by an iteration."""

    def figures(x):
        H = lh.local_hessian(lh.back_match(CASE.chain, params, x, CASE.y, CASE.loss), "conv2")
        top = lh.spectrum(H, lh.GolubKahan(which="largest", k=1, max_matvecs=8))
        return lh.condition_number(lh.spectrum(H, lh.Dense())).value + top.lambda_max

    return jax.grad(figures)(x)


def summed(matching):
    parts = [lh.local_hessian(matching, "conv2", part=part) for part in ("gauss_newton", "residual")]
    return lh.spectrum(lh.weighted_sum(parts, (0.5, 2.0)), lh.Dense())


def told(H):
    """All that is said of a spectrum."""
    found = lh.certify(lh.spectrum(H, lh.GolubKahan(max_matvecs=20)), trace=lh.trace(H).value)
    return lh.summarize(found), lh.condition_number(found), lh.quantile_condition_number(found, 0.05)


SOLVERS = {
    "GradientStep": lh.GradientStep(0.1),
    "ScaledGradient": lh.ScaledGradient(),
    "OptaxSteps": lh.OptaxSteps(optax.sgd(0.1), 2),
    "GaussNewton": lh.GaussNewton(),
    "LevenbergMarquardt": lh.LevenbergMarquardt(),
    "LeastSquares": {"conv2": lh.LeastSquares()},
}
OF_SAMPLES = {"wrt": "input", "samples": SAMPLES}
CASES = {"measure of large blocks": attentions()}
"""Of programs that are not of `CASE`."""
PROGRAMS = {
    "back_match": at(lambda matching: matching),
    "back_matching_loss": at(loss_of_block),
    "measure": measured,
    "measure under vmap": of_many,
    "measure of large blocks": surveyed,
    "Structured": spectrum(lh.Structured(), "conv2"),
    "Structured of the last block": spectrum(lh.Structured(), "head"),
    "Structured of samples": spectrum(lh.Structured(), "conv2", **OF_SAMPLES),
    "Dense": spectrum(lh.Dense(), "conv2", vectors=2, **OF_SAMPLES),
    "Dense of a coupled block": spectrum(lh.Dense(), "norm", "input"),
    "Lanczos": spectrum(lh.Lanczos(max_matvecs=20, basis_size=8), "conv2", part="full"),
    "GolubKahan": spectrum(lh.GolubKahan(max_matvecs=20, basis_size=8), "conv2", **OF_SAMPLES),
    "GolubKahan with vectors": spectrum(
        lh.GolubKahan(which="largest", k=2, max_matvecs=8, block_size=2), "conv2", vectors=2
    ),
    "weighted_sum": at(summed),
    "what a spectrum tells": figure(told, "conv2"),
    "derivatives": derivatives,
    "trace": figure(lh.trace, "conv2"),
    "XTrace": figure(lambda H: lh.trace(H, lh.XTrace(probes=4)), "conv2", **OF_SAMPLES),
    "HutchPlusPlus": figure(lambda H: lh.trace(H, lh.HutchPlusPlus(probes=6)), "conv2", **OF_SAMPLES),
    "moments": figure(lambda H: (lh.frobenius_norm(H), lh.range_mean(H)), "conv2", **OF_SAMPLES),
    "diagonal": figure(lh.diagonal, "head"),
    "spectral_density": figure(lambda H: lh.spectral_density(H, probes=2, steps=4), "head"),
    "local_scalars": at(lambda matching: lh.local_scalars(matching).weights),
    **{f"scale_amended_sgd, {scalar}": amended(scalar) for scalar in ("mean", "range_mean", "max")},
    **{name: propagated(solver) for name, solver in SOLVERS.items()},
    "LeastSquares of inputs": propagated(lh.GradientStep(0.1), input_solver={"conv2": lh.LeastSquares()}),
}


@pytest.mark.relaxed
@pytest.mark.parametrize("name", PROGRAMS)
def test_lowers_without_the_host_or_float64(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    case = CASES.get(name, CASE)
    with jax.enable_x64(False):
        exported = jax.export.export(jax.jit(PROGRAMS[name]), platforms=("cuda", "tpu"))(case.params, case.x)
    text = exported.mlir_module()
    assert exported.platforms == ("cuda", "tpu")
    assert "f64" not in text
    assert "callback" not in text
    assert "lapack" not in text
