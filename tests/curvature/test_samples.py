"""A sample's H_z is its diagonal block in the batch: whatever the block or the loss does with the batch."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import localhessian as lh

pytestmark = pytest.mark.once

N = 6
BOOTSTRAP = (2, 5, 2, 0, 2, 5)


def scaled(params, z):
    """A scale of the whole batch, without gradient, as quantization has it."""
    return networks.tanh_dense(params, z / jax.lax.stop_gradient(jnp.abs(z).max()))


def paired(params, z):
    return networks.tanh_dense(params, z.reshape(3, 2, 4).reshape(6, 4))


def placed(params, z):
    """Each sample by its place in the batch."""
    return networks.tanh_dense(params, z * (1 + jnp.arange(len(z), dtype=z.dtype))[:, None])


def masked(params, z, context):
    return networks.tanh_dense(params, z * context["mask"]) * context["table"][None]


def ranked(params, z):
    """The largest of the batch are left out: equal values for few samples, other derivatives."""
    keep = jax.lax.stop_gradient(z >= jnp.median(z))
    return networks.tanh_dense(params, jnp.where(keep, z, 0))


def case(block=networks.tanh_dense, loss=networks.cross_entropy, y=None, dtype=None, context=None):
    plain = networks.mlp(widths=(4, 5, 3), n=N, seed=2)
    chain = lh.Chain([lh.Block("layer0", block), plain.chain.blocks[1]])
    larger = np.asarray(plain.x) * np.where(np.arange(N) == 0, 20, 1)[:, None]
    cast = lambda leaf: jax.device_put(np.asarray(leaf, dtype or plain.x.dtype))
    params, x = (jax.tree.map(cast, tree) for tree in (plain.params, larger))
    return networks.Case(chain, params, x, plain.y if y is None else y, loss, context)


def truth(case, name, part="gauss_newton"):
    """The diagonal block of each sample, (n, d, d), from dense derivatives of the whole batch in float32 at least."""
    wide = lambda leaf: leaf.astype(jnp.float32) if jnp.finfo(leaf.dtype).bits < 32 else leaf
    params, b = jax.tree.map(wide, case.params[name]), case.chain.index(name)
    apply, z = case.chain.blocks[b], wide(lh.back_match(*case).activations[b])
    outputs = lambda z: apply(params, z, case.context)
    n = np.arange(N)
    J = np.asarray(jax.jit(jax.jacobian(outputs))(z), np.float64)[n, :, n, :]
    if name != "head":
        return np.einsum("nij,nik->njk", J, J)
    if part == "full":
        return np.asarray(jax.jit(jax.hessian(lambda z: case.loss(outputs(z), case.y).sum()))(z))[n, :, n, :]
    S = np.asarray(jax.jit(jax.hessian(lambda z: case.loss(z, case.y).sum()))(outputs(z)), np.float64)[n, :, n, :]
    return np.einsum("nij,nik,nkl->njl", J, S, J)


def check(case, name, samples=BOOTSTRAP, rtol=2e-5, part="gauss_newton"):
    matching, exact = lh.back_match(*case), truth(case, name, part)[list(samples)]
    ours = np.asarray(lh.local_hessian(matching, name, "input", part, samples=samples).to_dense(), np.float64)
    one = np.asarray(lh.local_hessian(matching, name, "input", part, samples=samples[1]).to_dense(), np.float64)
    for found, wanted in (*zip(ours, exact, strict=True), (one, exact[1])):
        np.testing.assert_allclose(found, wanted, atol=rtol * np.abs(wanted).max())
    return matching


@pytest.mark.optimized  # both sides of a saturated tanh, 1 - tanh^2 = 1e-6, from the same roundings
@pytest.mark.relaxed
@pytest.mark.parametrize("block", [networks.tanh_dense, scaled, paired, placed, ranked], ids=lambda f: f.__name__)
def test_blocks_that_look_at_their_batch(block):
    """In another order, and repeated, as a bootstrap draws them."""
    check(case(block), "layer0")


@pytest.mark.relaxed
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_blocks_that_look_at_their_batch_in_half_precision(dtype):
    """A product in 16 bits has a few of its roundings (eps 2^-7 and 2^-10); the wrong scale is off by 400."""
    loss = lambda z, y: networks.cross_entropy(z.astype(jnp.float32), y)
    check(case(scaled, loss, dtype=dtype), "layer0", rtol=16 * float(jnp.finfo(dtype).eps))


@pytest.mark.optimized
def test_context_of_each_sample_and_of_none():
    """Permuted samples have their own masks, also where values do not tell (z = 0); a table of six stays whole."""
    mask = (jnp.arange(24.0).reshape(6, 4) % 3 + 1).astype(jnp.result_type(float))
    context = {"mask": mask, "table": jnp.arange(1.0, 6.0)}
    check(case(masked, context=context), "layer0")
    at_zero = case(masked, context=context)
    check(at_zero._replace(x=jnp.zeros_like(at_zero.x)), "layer0", samples=(1, 0, 3))


WEIGHTS = jnp.array([1.0, 0.2, 0.2, 1.0, 0.2, 3.0])
CLASSES = jnp.array([1.0, 10.0, 100.0, 7.0, 8.0, 9.0])
entropy = networks.cross_entropy
LOSSES = {
    "weights over the batch": (lambda z, y: entropy(z, y[0]) * y[1] / y[1].mean(), lambda y: (y, WEIGHTS)),
    "as many weights of classes": (lambda z, y: entropy(z, y[0]) * y[1][y[0]], lambda y: (y, CLASSES)),
    "a scalar": (lambda z, y: entropy(z / y[1], y[0]), lambda y: (y, jnp.asarray(2.0))),
    "a list": (lambda z, y: entropy(z, jnp.stack(y)), lambda y: [jnp.asarray(int(label)) for label in y]),
    "hard examples": (lambda z, y: _hard(entropy(z, y)), lambda y: y),
    "not convex, by label": (lambda z, y: jnp.where(y == 0, entropy(z, y), -(z**4).sum(1)) * _rank(z), lambda y: y),
}


def _hard(losses):
    return losses * jax.lax.stop_gradient(losses / losses.sum())


def _rank(z):
    return 1 + jnp.arange(len(z), dtype=z.dtype)


@pytest.mark.once
@pytest.mark.relaxed
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_told_of_the_whole_batch(name):
    loss, of = LOSSES[name]
    given = case(loss=loss, y=of(jnp.arange(N) % 3))
    matching = check(given, "head")
    if name in ("weights over the batch", "a list"):
        check(given, "head", part="full")
    jitted = jax.jit(lambda v: lh.local_hessian(matching, "head", "input", samples=[4, 1]).mv(v))
    v = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5)), WEIGHTS.dtype)
    exact = np.einsum("nij,nj->ni", truth(given, "head")[[4, 1]], v)
    np.testing.assert_allclose(jitted(v), exact, atol=2e-5 * np.abs(exact).max())


def test_repeated_samples_have_repeated_spectra_by_every_method():
    matching = lh.back_match(*case(placed))
    exact = np.linalg.eigvalsh(truth(case(placed), "layer0")[list(BOOTSTRAP)])
    H = lh.local_hessian(matching, "layer0", "input", samples=BOOTSTRAP)
    for method in (None, lh.Dense(), lh.GolubKahan(), lh.Lanczos()):
        found = lh.spectrum(H, method)
        np.testing.assert_allclose(found.lambda_max, exact[:, -1], rtol=2e-5)


def test_traced_indices_may_repeat():
    given = case()
    matching, v = lh.back_match(*given), jnp.ones((3, 4))
    rows = jax.jit(lambda index: lh.local_hessian(matching, "layer0", "input", samples=index).mv(v))
    for index in ([3, 1, 0], [1, 1, -5]):
        exact = truth(given, "layer0")[index].sum(2)
        np.testing.assert_allclose(rows(jnp.array(index)), exact, atol=2e-5 * np.abs(exact).max())
