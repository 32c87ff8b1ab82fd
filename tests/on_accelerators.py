"""Every device program lowers for CUDA and TPU as it is traced there: without the host, and in the model's precision.

`test_devices.py` runs this last in a process of its own: what is remembered of a device must not reach other tests.
"""

import jax
import networks
import optax
import pytest

import localhessian as lh

CASE = networks.convolutional()
SAMPLES = (0, 1)
SOLVERS = (
    lh.GradientStep(0.1),
    lh.ScaledGradient(),
    lh.OptaxSteps(optax.sgd(0.1), 2),
    lh.GaussNewton(),
    lh.LevenbergMarquardt(),
)


def at(function):
    """A program of parameters and inputs, of what is found at the back-matching there."""
    return lambda params, x: function(lh.back_match(CASE.chain, params, x, CASE.y, CASE.loss))


def spectrum(method, *where, **how):
    return at(lambda matching: lh.spectrum(lh.local_hessian(matching, *where, **how), method))


def figure(function, *where, **how):
    return at(lambda matching: function(lh.local_hessian(matching, *where, **how)))


def measured(params, x):
    return lh.measure(CASE.chain, params, x, CASE.y, CASE.loss, samples=SAMPLES, blocks="conv2")


def propagated(solver):
    return lambda params, x: lh.propagate(CASE.chain, params, x, CASE.y, CASE.loss, weight_solver=solver)


def amended(params, x):
    optimizer = lh.scale_amended_sgd(CASE.chain, CASE.loss, 0.1)
    gradients = jax.grad(lambda params: CASE.loss(CASE.chain.forward(params, x)[-1], CASE.y).mean())(params)
    return optimizer.update(gradients, optimizer.init(params), params, x=x, y=CASE.y)


PROGRAMS = {
    "back_match": at(lambda matching: matching),
    "measure": measured,
    "Structured": spectrum(lh.Structured(), "conv2"),
    "Dense": spectrum(lh.Dense(), "conv2", "input", samples=SAMPLES),
    "Lanczos": spectrum(lh.Lanczos(max_matvecs=20, basis_size=8), "conv2", part="full"),
    "GolubKahan": spectrum(lh.GolubKahan(max_matvecs=20, basis_size=8), "conv2", "input", samples=SAMPLES),
    "trace": figure(lh.trace, "conv2"),
    "XTrace": figure(lambda H: lh.trace(H, lh.XTrace(probes=4)), "conv2", "input", samples=SAMPLES),
    "diagonal": figure(lh.diagonal, "head"),
    "spectral_density": figure(lambda H: lh.spectral_density(H, probes=2, steps=4), "head"),
    "local_scalars": at(lambda matching: lh.local_scalars(matching).weights),
    "scale_amended_sgd": amended,
    **{type(solver).__name__: propagated(solver) for solver in SOLVERS},
}


@pytest.mark.relaxed
@pytest.mark.parametrize("name", PROGRAMS)
def test_lowers_without_the_host_or_float64(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with jax.enable_x64(False):
        exported = jax.export.export(jax.jit(PROGRAMS[name]), platforms=("cuda", "tpu"))(CASE.params, CASE.x)
    text = exported.mlir_module()
    assert exported.platforms == ("cuda", "tpu")
    assert "f64" not in text
    assert "callback" not in text
    assert "lapack" not in text
