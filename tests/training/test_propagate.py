"""Procedure 1: gradient solvers are SGD; the other solvers against dense algebra; the trust rule."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

import localhessian as lh
from localhessian._programs import compiler_options

CASES = {
    "mlp": networks.mlp,
    "skip": networks.skip,
    "sigmoid, depth 20": networks.vanishing_sigmoid,
    "batch norm": networks.normalized,
    "convolutional": networks.convolutional,
}


def norm(tree):
    return float(np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(tree))))


def gradient(case, params):
    def objective(params):
        return case.loss(case.chain.forward(params, case.x, case.context)[-1], case.y).mean()

    return jax.jit(jax.grad(objective))(params)


def sgd(case, rate):
    return jax.tree.map(lambda p, g: p - rate * g, case.params, gradient(case, case.params))


def step(case, **solvers):
    @jax.jit
    def run(params):
        return lh.propagate(case.chain, params, case.x, case.y, case.loss, context=case.context, **solvers)

    return run(case.params)


def distance(one, two):
    flat = [jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (one, two)]
    return float(jnp.linalg.norm(flat[0] - flat[1]))


@pytest.mark.parametrize("name", CASES)
def test_gradient_solvers_are_a_step_of_sgd(name, tol):
    """Block by block, relative to the step itself: gradients that vanish with depth are as right as the others."""
    case = CASES[name]()
    ours, info = step(case, weight_solver=lh.GradientStep(0.3))
    grads = gradient(case, case.params)
    for block in case.chain.names:
        if not jax.tree.leaves(case.params.get(block, ())):
            continue
        expected = jax.tree.map(lambda p, g: p - 0.3 * g, case.params[block], grads[block])
        size = norm(grads[block])
        # W - eta g rounds to eps |W|, whatever the size of g; the step itself is compared by its norm.
        rounding = 4 * float(jnp.finfo(case.x.dtype).eps) * (norm(case.params[block]))
        assert distance(ours[block], expected) <= 10 * tol.identity * size + rounding
        np.testing.assert_allclose(info.blocks[block].step_norm, 0.3 * size, rtol=10 * tol.identity)
    assert int(info.rejected) == 0
    assert int(info.blocks[case.chain.names[0]].displacement_norm) == 0


def test_training_is_sgd_step_by_step_in_the_users_own_loop(tol, count_compilations):
    case = networks.mlp()
    ours = case.params

    @jax.jit
    def train(params, state, x):
        new, info = lh.propagate(case.chain, params, x, case.y, case.loss, lh.GradientStep(0.2), state=state)
        return new, info.state

    batches = [scale * case.x for scale in (1.0, 1.01, 1.0, 1.01, 1.02)]
    ours, state = train(ours, None, batches[0])
    theirs = sgd(case, 0.2)
    ours, state = train(ours, state, batches[1])
    with count_compilations() as seen:
        for x in batches[2:]:
            ours, state = train(ours, state, x)
    assert seen.names == []
    for x in batches[1:]:
        theirs = sgd(case._replace(params=theirs, x=x), 0.2)
    assert distance(ours, theirs) <= 100 * tol.identity


def affine_case(n=12, inputs=5, outputs=4, last=3):
    return networks.mlp(networks.linear, (inputs, outputs, last), n=n, loss=networks.squared_error)


def test_least_squares_is_the_exact_minimizer_of_an_affine_block(tol):
    case = affine_case()
    new, info = step(case, weight_solver={"layer0": lh.LeastSquares()}, input_solver={"layer0": lh.LeastSquares()})
    matching = lh.back_match(case.chain, case.params, case.x, case.y, case.loss)
    rows = np.concatenate([np.asarray(case.x, np.float64), np.ones((12, 1))], axis=1)
    delta = np.asarray(matching.displacements[1], np.float64)
    expected = np.linalg.lstsq(rows, delta, rcond=None)[0]
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), new["layer0"], case.params["layer0"])
    np.testing.assert_allclose(moved["kernel"], expected[:-1], atol=1e3 * tol.eigenvalue)
    np.testing.assert_allclose(moved["bias"], expected[-1], atol=1e3 * tol.eigenvalue)
    assert distance(new["head"], case.params["head"]) == 0  # not in the mapping: it keeps its weights
    assert lh.Status(int(info.blocks["layer0"].weight_status)) is lh.Status.CONVERGED
    rest = 0.5 * ((rows @ expected - delta) ** 2).sum() / 12
    np.testing.assert_allclose(info.blocks["layer0"].loss_after, rest, atol=1e3 * tol.eigenvalue)


def test_gauss_newton_targets_are_the_pseudo_inverse(tol):
    """Three blocks: the middle one hands down delta_1 = J^+ delta_2, sample by sample."""
    case = networks.mlp(networks.linear, (5, 6, 4, 3), n=3, loss=networks.squared_error)
    new, _ = step(case, weight_solver=lh.GradientStep(1.0), input_solver={"layer1": lh.LeastSquares()})
    matching = lh.back_match(case.chain, case.params, case.x, case.y, case.loss)
    inverse = np.linalg.pinv(np.asarray(case.params["layer1"]["kernel"], np.float64))
    target = np.asarray(matching.displacements[2], np.float64) @ inverse
    expected = np.asarray(case.x, np.float64).T @ target / 3
    moved = np.asarray(new["layer0"]["kernel"] - case.params["layer0"]["kernel"])
    np.testing.assert_allclose(moved, expected, atol=1e3 * tol.eigenvalue)


def test_gauss_newton_solves_the_damped_system(tol, dtype):
    case = networks.mlp()
    solver = lh.GaussNewton(damping=0.1, iterations=80, rtol=2 * float(jnp.finfo(dtype).eps))
    new, info = step(case, weight_solver=solver)
    matching = lh.back_match(case.chain, case.params, case.x, case.y, case.loss)
    for block in ("layer1", "head"):
        hessian = np.asarray(lh.local_hessian(matching, block).to_dense(), np.float64)
        gradient = np.asarray(jax.flatten_util.ravel_pytree(matching.gradients[block])[0], np.float64)
        expected = -np.linalg.solve(hessian + 0.1 * np.eye(len(hessian)), gradient)
        start, moved = (jax.flatten_util.ravel_pytree(params[block])[0] for params in (case.params, new))
        np.testing.assert_allclose(moved - start, expected, atol=1e3 * tol.eigenvalue * np.abs(expected).max())
        assert float(info.blocks[block].loss_after) < float(info.blocks[block].loss_before)


@pytest.mark.once
def test_levenberg_marquardt_rejects_and_damps_more():
    """From damping 0 the step of a saturated block overshoots; after some rejections it goes down."""
    case = networks.mlp(networks.sigmoid_dense, (4, 6, 3), gain=12.0, loss=networks.squared_error)
    case = case._replace(y=case.y + 30.0)
    solver = lh.LevenbergMarquardt(damping=1e-7, iterations=12, up=30.0)
    train = jax.jit(
        lambda params, state: lh.propagate(
            case.chain, params, case.x, case.y, case.loss, {"layer0": solver}, state=state
        )
    )
    params, state, statuses, losses = case.params, None, [], []
    for _ in range(12):
        params, info = train(params, state)
        state = info.state
        statuses.append(lh.Status(int(info.blocks["layer0"].weight_status)))
        losses.append(float(info.blocks["layer0"].loss_after) - float(info.blocks["layer0"].loss_before))
    assert lh.Status.REJECTED in statuses
    assert statuses[-1] is not lh.Status.REJECTED
    assert max(losses) <= 1e-6
    assert min(losses) < 0


@pytest.mark.once
def test_levenberg_marquardt_judges_by_the_model_without_damping():
    """Against the book's formulas in float64, over dampings at which its ratio falls into every regime."""
    case = networks.mlp(networks.sigmoid_dense, (4, 3, 2), gain=6.0, loss=networks.squared_error)
    case = case._replace(y=case.y + 20.0)
    matching = lh.back_match(case.chain, case.params, case.x, case.y, case.loss)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), (case.params["layer0"], case.x))
        start, unravel = jax.flatten_util.ravel_pytree(wide[0])
        delta = np.asarray(matching.displacements[1], np.float64)
        outputs = jax.jit(lambda w: networks.sigmoid_dense(unravel(w), wide[1]).ravel())
        center, jacobian = np.asarray(outputs(start)), np.asarray(jax.jit(jax.jacobian(outputs))(start))
    n, target = len(delta), delta.ravel()
    phi = lambda p: 0.5 / n * ((target - np.asarray(outputs(start + p)) + center) ** 2).sum()
    gradient, curvature = -jacobian.T @ target / n, jacobian.T @ jacobian / n

    @jax.jit
    def run(damping):
        solver = {"layer0": lh.LevenbergMarquardt(damping=damping, iterations=30, rtol=1e-6, up=3.0, down=0.5)}
        _, info = lh.propagate(case.chain, case.params, case.x, case.y, case.loss, solver)
        return info.state["layer0"][0], info.blocks["layer0"].weight_status

    seen = set()
    for damping in 10.0 ** np.arange(-3, 2.1, 0.5):
        with jax.enable_x64(True):
            p = -np.linalg.solve(curvature + damping * np.eye(len(start)), gradient)
            ratio = (phi(0 * p) - phi(p)) / -(gradient @ p + 0.5 * p @ curvature @ p)
        factor = 0.5 if ratio > 0.75 else 3.0 if ratio < 0.25 else 1.0
        after, status = run(damping)
        assert min(abs(ratio - edge) for edge in (0.1, 0.25, 0.75)) > 1e-3
        np.testing.assert_allclose(after, factor * damping, rtol=1e-5)
        assert (lh.Status(int(status)) is lh.Status.REJECTED) == (ratio < 0.1)
        seen.add(factor)
    assert seen == {0.5, 1.0, 3.0}


@pytest.mark.once
@pytest.mark.parametrize(
    "make",
    [
        lambda: lh.GradientStep(float("nan")),
        lambda: lh.GradientStep("fast"),
        lambda: lh.GradientStep(-0.1),
        lambda: lh.ScaledGradient(0.1, probes=1),
        lambda: lh.ScaledGradient(None),
        lambda: lh.OptaxSteps(None),
        lambda: lh.OptaxSteps(optax.sgd(0.1), 0),
        lambda: lh.OptaxSteps(optax.sgd),
        lambda: lh.GaussNewton(damping=-1),
        lambda: lh.GaussNewton(iterations=0),
        lambda: lh.GaussNewton(rtol=float("inf")),
        lambda: lh.LevenbergMarquardt(iterations=2.5),
        lambda: lh.LevenbergMarquardt(up=0.5),
        lambda: lh.LevenbergMarquardt(down=2.0),
        lambda: lh.LeastSquares(ridge="a"),
        lambda: lh.LeastSquares(max_numbers=0),
    ],
)
def test_settings_that_mean_nothing(make):
    with pytest.raises(
        (ValueError, TypeError),
        match=r"^`(rate|probes|optimizer|n|damping|iterations|rtol|up|down|ridge|"
        r"max_numbers)` must be .*, got ",
    ):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": lambda z, y: networks.squared_error(z, y).mean()}, "`loss` must return one loss for each of the"),
        ({"y": jnp.full((7, 3), jnp.nan)}, "`y` is not finite"),
        ({"x": jnp.full((7, 4), jnp.inf)}, "`x` is not finite"),
        ({"x": jnp.zeros((0, 4))}, "`x` is an empty batch"),
        ({"params": {"unknown": 1}}, "there is no block `unknown`"),
    ],
)
def test_propagate_refuses_what_back_match_refuses(change, message):
    case = networks.mlp(loss=networks.squared_error)._replace(**change)
    with pytest.raises((ValueError, KeyError), match=message):
        lh.propagate(case.chain, case.params, case.x, case.y, case.loss)


@pytest.mark.refuses
def test_what_is_no_solver():
    case = networks.mlp()
    for solver in (None, lh.GradientStep, "sgd", {"head": 0.1}, lambda name: None):
        with pytest.raises(TypeError, match="must be a solver"):
            lh.propagate(case.chain, case.params, case.x, case.y, case.loss, solver)


@pytest.mark.once
def test_a_step_that_would_raise_the_loss_is_undone_and_said():
    case = networks.mlp()
    new, info = step(case, weight_solver=lh.OptaxSteps(optax.sgd(1e6), 3))
    assert [lh.Status(int(info.blocks[b].weight_status)) for b in case.chain.names] == [lh.Status.REJECTED] * 3
    assert distance(new, case.params) == 0
    assert int(info.rejected) == 3
    blown = case._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, case.params))
    _, info = step(blown)
    assert int(info.rejected) >= 3


@pytest.mark.once
@pytest.mark.relaxed
@pytest.mark.parametrize(
    "solver",
    [lh.ScaledGradient(0.1), lh.OptaxSteps(optax.adam(1e-2), 2), lh.GaussNewton(0.1), lh.LevenbergMarquardt()],
    ids=lambda solver: type(solver).__name__,
)
def test_every_solver_lowers_the_loss_and_keeps_its_state(solver):
    case = networks.mlp(networks.skip_dense, (5, 5, 5), loss=networks.squared_error)
    train = jax.jit(
        lambda params, state: lh.propagate(case.chain, params, case.x, case.y, case.loss, solver, solver, state=state)
    )
    params, info = train(case.params, None)
    structure = jax.tree.structure(info.state)
    for _ in range(8):
        params, info = train(params, info.state)
    assert jax.tree.structure(info.state) == structure
    before = case.loss(case.chain.forward(case.params, case.x)[-1], case.y).mean()
    assert float(case.loss(case.chain.forward(params, case.x)[-1], case.y).mean()) < 0.9 * float(before)


@pytest.mark.once
@pytest.mark.parametrize("how", [lambda run: run, jax.grad], ids=["plain", "grad"])
def test_without_jit_a_second_step_compiles_nothing(how, compiles_once):
    """Loops by themselves, as those of conjugate gradients, are compiled at every call."""
    case = networks.mlp(networks.skip_dense, (5, 5, 5), loss=networks.squared_error)
    solvers = {"layer0": lh.GaussNewton(0.1, 3), "head": lh.LevenbergMarquardt(0.1, 3)}

    @how
    def run(scale):
        params = jax.tree.map(lambda leaf: scale * leaf, case.params)
        new, _ = lh.propagate(case.chain, params, case.x, case.y, case.loss, solvers, solvers)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(new))

    compiles_once(run)


def test_messages():
    case = affine_case()
    with pytest.raises(ValueError, match="`LeastSquares` needs a back-matching loss, which is a square"):
        step(case, weight_solver=lh.LeastSquares())
    with pytest.raises(ValueError, match=r"`LeastSquares\(max_numbers=10\)` cannot hold a Jacobian of 1152 numbers"):
        step(case, weight_solver={"layer0": lh.LeastSquares(max_numbers=10)})
    with pytest.raises(KeyError, match="there is no block `laier0`"):
        step(case, weight_solver={"laier0": lh.GradientStep(0.1)})
    with pytest.raises(ValueError, match="`scalar` must be one of mean, range_mean, max, got 'median'"):
        lh.ScaledGradient(0.1, scalar="median")
    tanh = networks.mlp(networks.tanh_dense, (4, 6, 3), loss=networks.squared_error)
    _, info = step(tanh, weight_solver={"layer0": lh.LeastSquares()})
    status = lh.Status(int(info.blocks["layer0"].weight_status))
    assert status in {lh.Status.NOT_AFFINE, lh.Status.REJECTED}


@pytest.mark.once
def test_without_jit_equal_blocks_share_a_few_programs(count_compilations):
    """Each operation by itself would be a program: 150 of them."""

    def programs(depth):
        case = networks.mlp(widths=(5,) * (depth + 1) + (3,))
        jax.clear_caches()
        with count_compilations() as seen:
            lh.propagate(case.chain, case.params, case.x, case.y, case.loss)
        return len(seen.names)

    compiler_options()  # which a process tries once
    assert programs(5) == programs(3) < 40


@pytest.mark.once
def test_without_jit_no_solver_runs_step_by_step(count_compilations):
    """Each operation would be a program, and each loop one at every call."""
    solvers = [
        lh.ScaledGradient(0.1),
        lh.ScaledGradient(0.1, "max"),
        lh.OptaxSteps(optax.sgd(0.1), 2),
        lh.LeastSquares(),
        lh.GradientStep(0.1),
    ]
    case = networks.mlp(widths=(5, 5, 5, 5, 5, 3))
    of_blocks = dict(zip(case.chain.names, solvers, strict=True))
    jax.clear_caches()
    counts = []
    for _ in range(2):
        with count_compilations() as seen:
            lh.propagate(case.chain, case.params, case.x, case.y, case.loss, of_blocks, of_blocks)
        counts.append(len(seen.names))
    assert counts[0] < 80
    assert counts[1] == 0
