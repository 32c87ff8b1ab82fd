"""The identities of the theory, on every kind of block and on vanishing signals."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import localhessian as lh
from localhessian.curvature._identities import TOLERANCES

TOLERANCE = 1e-12 if jax.config.jax_enable_x64 else 1e-5


def relative(ours, truth):
    ours, truth = flat(ours), flat(truth)
    return np.linalg.norm(ours - truth) / np.linalg.norm(truth)


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def dense(operator):
    """Its matrix in float64: what is done with it rounds no more."""
    return np.asarray(operator.to_dense(), np.float64)


def widened(tree):
    """The same numbers in float64."""
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float64) if floating(leaf) else leaf, tree)


def objective(case):
    return lambda params: case.loss(case.chain.forward(params, case.x, case.context)[-1], case.y).mean()


@pytest.mark.parametrize("make", [*networks.SMALL, networks.normalized, *networks.VANISHING])
def test_back_matching_gradients_are_those_of_back_propagation(make):
    """Against jax.grad in float64: in float32 it is as far from the truth as back-matching, through 50 blocks 6e-6."""
    case = make()
    # Blocks may hold constants in float32.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = case._replace(**{name: widened(getattr(case, name)) for name in ("params", "x", "context")})
        truth = jax.tree.map(np.asarray, jax.jit(jax.grad(objective(wide)))(wide.params))
    matching = networks.matched(make)
    for name in case.params:
        assert relative(matching.gradients[name], truth[name]) < TOLERANCE


@pytest.mark.parametrize("make", networks.SMALL)
def test_steps_of_the_theory_by_differentiating_the_literal_losses(make):
    """dl_b/dW_b = dJ/dW_b, and delta_{b-1} = -n dl_b/dz_{b-1}."""
    matching = networks.matched(make)
    for b, name in enumerate(matching.chain.names):
        params, z = matching.params[name], matching.activations[b]
        loss = lh.back_matching_loss(matching, name)
        literal = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True))(params, z)
        if jax.tree.leaves(params):
            assert relative(matching.gradients[name], literal[0]) < TOLERANCE
        if b > 0:
            assert relative(matching.displacements[b], -matching.samples * flat(literal[1])) < TOLERANCE


@pytest.mark.parametrize("make", networks.SMALL)
def test_losses_are_the_values_of_the_back_matching_losses(make):
    case, matching = make(), networks.matched(make)
    for b, name in enumerate(case.chain.names):
        literal = jax.jit(lh.back_matching_loss(matching, name))(matching.params[name], matching.activations[b])
        assert relative(matching.losses[name], literal) < TOLERANCE
    assert relative(matching.losses[case.chain.names[-1]], jax.jit(objective(case))(case.params)) < TOLERANCE


@pytest.mark.parametrize("make", networks.waiting(networks.SMALL, networks.SOON))
@pytest.mark.parametrize("wrt", ["params", "input"])
def test_parts_against_dense_second_derivatives_of_the_literal_loss(make, wrt):
    """full = the Hessian of l_b by jax.hessian = Gauss-Newton + residual, with Gauss-Newton = R^T R."""
    matching = networks.matched(make)
    for b, name in enumerate(matching.chain.names):
        variable = matching.params[name] if wrt == "params" else matching.activations[b]
        if not jax.tree.leaves(variable) or not jnp.issubdtype(jax.tree.leaves(variable)[0].dtype, jnp.floating):
            continue
        truth = literal_hessian(matching, name, b, wrt)
        operators = [lh.local_hessian(matching, name, wrt, part) for part in ("full", "gauss_newton", "residual")]
        full, gauss_newton, residual = map(dense, operators)
        factor = dense(operators[1].factor)
        assert relative(full, truth) < 10 * TOLERANCE  # jax.hessian rounds as much as we do
        assert relative(gauss_newton + residual, truth) < 10 * TOLERANCE
        assert relative(factor.T @ factor, gauss_newton) < TOLERANCE
        assert relative(independent_gauss_newton(matching, name, b, wrt), factor.T @ factor) < 10 * TOLERANCE


def literal_hessian(matching, name, b, wrt):
    loss, params, z = lh.back_matching_loss(matching, name), matching.params[name], matching.activations[b]
    vector, unravel = ravel_pytree(params if wrt == "params" else z)
    if wrt == "params":
        return jax.jit(jax.hessian(lambda v: loss(unravel(v), z)))(vector)
    return matching.samples * np.asarray(jax.jit(jax.hessian(lambda v: loss(params, unravel(v))))(vector))


def independent_gauss_newton(matching, name, b, wrt):
    """scale J^T S J from dense Jacobians; S from jax.hessian of the loss."""
    block, params, z = matching.chain.blocks[b], matching.params[name], matching.activations[b]
    vector, unravel = ravel_pytree(params if wrt == "params" else z)

    def outputs(v):
        arguments = (unravel(v), z) if wrt == "params" else (params, unravel(v))
        return ravel_pytree(block(*arguments, matching.context))[0]

    jacobian = np.asarray(jax.jit(jax.jacobian(outputs))(vector), np.float64)
    middle = np.eye(len(jacobian))
    if b == len(matching.chain) - 1:
        last, unravel_last = ravel_pytree(matching.activations[-1])
        middle = jax.jit(jax.hessian(lambda v: matching.loss(unravel_last(v), matching.y).sum()))(last)
    scale = 1 / matching.samples if wrt == "params" else 1
    return scale * jacobian.T @ middle @ jacobian


def test_affine_block_has_the_eigenvalues_of_C_each_d_out_times():
    case = networks.mlp(networks.linear, (4, 6, 3))
    matching = lh.back_match(*case)
    a = np.concatenate([np.asarray(case.x, np.float64), np.ones((len(case.x), 1))], axis=1)
    truth = np.repeat(np.linalg.eigvalsh(a.T @ a / len(a)), 6)
    ours = lh.spectrum(lh.local_hessian(matching, "layer0"))
    assert ours.multiplicities.tolist() == [6] * 5
    np.testing.assert_allclose(np.repeat(ours.eigenvalues, 6), truth, atol=TOLERANCE * truth[-1])


def test_orthogonal_linear_block_has_the_identity_as_H_z():
    case = networks.mlp(networks.linear, (5, 5, 3))
    case.params["layer0"]["kernel"] = jnp.linalg.qr(case.params["layer0"]["kernel"])[0]
    H = lh.local_hessian(lh.back_match(*case), "layer0", "input", samples=2)
    np.testing.assert_allclose(H.to_dense(), np.eye(5), atol=TOLERANCE)


@pytest.mark.once
@pytest.mark.parametrize("make", networks.waiting(networks.SMALL, networks.SOON))
def test_per_sample_H_z_are_the_diagonal_blocks_of_the_batch(make):
    matching = networks.matched(make)
    for b, name in enumerate(matching.chain.names):
        z = matching.activations[b]
        if not jnp.issubdtype(z.dtype, jnp.floating) or bool(matching.coupled[name]):
            continue
        n, d = len(z), z[0].size
        for part in ("gauss_newton", "full"):
            whole = dense(lh.local_hessian(matching, name, "input", part)).reshape(n, d, n, d)
            blocks = dense(lh.local_hessian(matching, name, "input", part, samples=range(n)))
            one = dense(lh.local_hessian(matching, name, "input", part, samples=n - 1))
            truth = whole[np.arange(n), :, np.arange(n)]
            assert relative(blocks, truth) < TOLERANCE
            assert relative(one, truth[-1]) < TOLERANCE
            whole = whole.copy()
            whole[np.arange(n), :, np.arange(n)] = 0
            assert np.abs(whole).max() == 0


def test_batch_norm_couples_and_equals_the_dense_coupled_matrix():
    """The Jacobian of batch normalization by its closed form, coupled over the batch."""
    case = networks.normalized()
    matching = lh.back_match(*case)
    assert {name: bool(c) for name, c in matching.coupled.items()} == {"dense": False, "norm": True, "head": False}
    z = np.asarray(matching.activations[1], np.float64)
    n, d = z.shape
    centered, gamma = z - z.mean(0), np.asarray(case.params["norm"]["gamma"])
    deviation = np.sqrt((centered**2).mean(0) + 1e-5)
    unit = centered / deviation
    jacobian = np.zeros((n, d, n, d))
    for c in range(d):
        inner = np.eye(n) - 1 / n - np.outer(unit[:, c], unit[:, c]) / n
        jacobian[:, c, :, c] = gamma[c] / deviation[c] * inner
    jacobian = jacobian.reshape(n * d, n * d)
    ours = lh.local_hessian(matching, "norm", "input").to_dense()
    assert relative(ours, jacobian.T @ jacobian) < TOLERANCE


@pytest.mark.once
@pytest.mark.parametrize("make", networks.waiting(networks.SMALL, networks.SOON))
def test_check_identities_passes_on_every_kind_of_network(make):
    check = lh.check_identities(*make())
    assert not check.failures
    assert {block for block, _ in check.errors} == set(make().chain.names)


@pytest.mark.once
@pytest.mark.parametrize("make", networks.waiting(networks.VANISHING, networks.SOON))
def test_check_identities_passes_where_the_signal_vanishes(make):
    names = make().chain.names
    check = lh.check_identities(*make(), blocks=(names[0], names[len(names) // 2], names[-1]))
    assert not check.failures


@pytest.mark.once
def test_check_identities_names_the_block_with_a_wrong_derivative():
    @jax.custom_jvp
    def wrong(z):
        return z**2

    wrong.defjvp(lambda primals, tangents: (primals[0] ** 2, jnp.cumsum(primals[0], axis=1) * tangents[0]))
    case = networks.mlp()
    middle = lh.Block("wrong", lambda params, z: wrong(z))
    chain = lh.Chain([case.chain.blocks[0], middle, *case.chain.blocks[1:]])
    with pytest.raises(lh.IdentityError, match="identities fail on block `wrong`"):
        lh.check_identities(*case._replace(chain=chain))
    check = lh.check_identities(*case._replace(chain=chain), throw=False)
    assert {block for block, _ in check.failures} == {"wrong"}
    one = lh.check_identities(*case._replace(chain=chain), blocks="wrong", throw=False)
    assert {block for block, _ in one.errors} == {"wrong"}
    assert "FAIL" in str(check)


def test_local_hessians_are_not_diagonal_blocks_of_the_loss_hessian():
    """The diagonal block of the loss's Gauss-Newton matrix carries S' back from the loss: (1/n) J_W^T S' J_W."""
    case = networks.mlp()
    matching = lh.back_match(*case)
    name, head = "layer1", case.params["head"]
    weights, unravel = ravel_pytree(case.params[name])

    def logits(w):
        return networks.linear(head, networks.tanh_dense(unravel(w), matching.activations[1]))

    outer = np.asarray(jax.jit(jax.jacobian(logits))(weights)).reshape(-1, len(weights))
    last, unravel_last = ravel_pytree(matching.activations[-1])
    S = np.asarray(jax.jit(jax.hessian(lambda v: case.loss(unravel_last(v), case.y).sum()))(last))
    diagonal_block = outer.T @ S @ outer / len(case.x)
    local = dense(lh.local_hessian(matching, name))
    assert relative(local, diagonal_block) > 0.5
    # With S' inserted the local factor gives the diagonal block.
    inner = dense(lh.local_hessian(matching, name).factor)
    kernel = np.kron(np.eye(len(case.x)), np.asarray(head["kernel"]).T)
    assert relative(inner.T @ (kernel.T @ S @ kernel) @ inner, diagonal_block) < 10 * TOLERANCE


@pytest.mark.once
def test_tolerances_follow_the_narrowest_arithmetic():
    """Mixed precision: float32 in and out, bfloat16 inside; a rule that is wrong is caught all the same."""

    def narrow(params, z):
        return jnp.tanh(z.astype(jnp.bfloat16) @ params.astype(jnp.bfloat16)).astype(z.dtype)

    @jax.custom_jvp
    def wrong(z):
        return z**2

    wrong.defjvp(lambda primals, tangents: (primals[0] ** 2, jnp.cumsum(1 + 9 * primals[0], axis=1) * tangents[0]))
    params = {"a": jnp.linspace(-1.0, 1.0, 9).reshape(3, 3), "b": jnp.linspace(1.0, 2.0, 6).reshape(3, 2)}
    x, y = jnp.cos(jnp.arange(15.0)).reshape(5, 3) / 4, jnp.zeros((5, 2))
    loss = lambda z, y: 0.5 * jnp.sum((z - y) ** 2, axis=1)
    chain = lh.Chain([lh.Block("a", narrow), lh.Block("b", lambda w, z: z @ w)])
    check = lh.check_identities(chain, params, x, y, loss, blocks="a")
    assert check.tolerance == TOLERANCES["bfloat16"]
    assert max(check.errors.values()) > 1e-6  # rounding that the tolerance of float32 is not meant for
    wide = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z @ w)), lh.Block("b", lambda w, z: z @ w)])
    assert (
        lh.check_identities(wide, params, x, y, loss, blocks="b").tolerance == TOLERANCES[str(jnp.result_type(float))]
    )
    chain = lh.Chain([chain.blocks[0], lh.Block("c", lambda w, z: wrong(narrow(w, z))), chain.blocks[1]])
    with pytest.raises(lh.IdentityError, match="identities fail on block `c`"):
        lh.check_identities(chain, params | {"c": 2 * params["a"]}, x, y, loss, blocks="c")
