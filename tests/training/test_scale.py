"""Scale-amended SGD: the scalars against dense Hessians, the formula, and what optax asks of a transformation."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from jax.extend.core import primitives

import localhessian as lh
from localhessian._programs import equations, inside
from localhessian._tree import size
from localhessian.curvature import SCALARS, estimated_scalars, random_words
from localhessian.curvature._scalars import _signs
from localhessian.network import SIDES, ByInput, Place


def norm(tree):
    return float(np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(tree))))


def gradient(case, params=None):
    def objective(params):
        return case.loss(case.chain.forward(params, case.x, case.context)[-1], case.y).mean()

    return jax.jit(jax.grad(objective))(case.params if params is None else params)


def updater(transform, case):
    return jax.jit(lambda grads, state, params: transform.update(grads, state, params, x=case.x, y=case.y))


def exact_scalars(case):
    """m_W and m_z of every block by dense Hessians."""
    matching = lh.back_match(case.chain, case.params, case.x, case.y, case.loss, case.context)
    found = {}
    for i, block in enumerate(case.chain.names):
        for wrt in ("params", "input") if i else ("params",):
            hessian = np.asarray(lh.local_hessian(matching, block, wrt).to_dense(), np.float64)
            found[block, wrt] = {
                "range_mean": np.trace(hessian @ hessian) / np.trace(hessian),
                "mean": np.trace(hessian) / len(hessian),
                "max": np.linalg.eigvalsh(hessian)[-1],
            }
    return found


def estimates(case, scalars, probes):
    """What `estimated_scalars` says of both sides of every block together, in one program."""

    def all_of_them(params, x, y, context):
        z, found = case.chain.forward(params, x, context), {}
        for b, block in enumerate(case.chain.blocks):
            sides = [kind(block) for wrt, kind in SIDES.items() if b or wrt == "params"]
            last = case.loss if b == len(case.chain) - 1 else None
            place = Place(params[block.name], z[b], context)
            words = random_words(jax.random.key(3), sum(size(side.varied(place)) for side in sides), probes)
            for scalar in scalars:
                values, _ = estimated_scalars(sides, last, scalar, place, y, words, probes)
                for side, value in zip(sides, values, strict=True):
                    found.setdefault((block.name, side.wrt), {})[scalar] = value
        return found

    return jax.jit(all_of_them)(case.params, case.x, case.y, case.context)


@pytest.mark.once
@pytest.mark.parametrize("make", [networks.mlp, networks.normalized], ids=["mlp", "batch norm"])
def test_scalars_are_unbiased_estimates_of_those_of_the_dense_hessians(make):
    """Many probes: tr H and tr H^2 to a few percent (their relative deviation over 400 probes is below 10 %)."""
    truth = exact_scalars(make())
    for side, found in estimates(make(), ("mean", "range_mean"), 400).items():
        for scalar, value in found.items():
            np.testing.assert_allclose(value, truth[side][scalar], rtol=0.12)


@pytest.mark.once
@pytest.mark.parametrize("make", [networks.mlp, networks.normalized], ids=["mlp", "batch norm"])
def test_the_largest_eigenvalue_is_estimated_from_below(make):
    """Ritz values of six products: within a tenth of lambda_max for orders up to 42, and never above it."""
    truth = exact_scalars(make())
    for side, found in estimates(make(), ("max",), 6).items():
        assert 0.9 * truth[side]["max"] <= float(found["max"]) <= (1 + 1e-5) * truth[side]["max"]


@pytest.mark.once
def test_all_scalars_of_the_identity_are_one(tol):
    """Estimated and exact alike, in float16 too; one eigenvalue 1024 times is found by the first product."""
    for dtype in (jnp.result_type(float), jnp.float16):
        chain = lh.Chain([lh.Block("a", lambda _, z: z), lh.Block("b", lambda _, z: z)])
        x = jnp.ones((2, 512), dtype)
        words = random_words(jax.random.key(0), x.size, 4)
        for scalar in ("mean", "max"):
            place = Place((), x, None)
            (value,), _ = estimated_scalars([ByInput(chain.blocks[0])], None, scalar, place, None, words, 4)
            np.testing.assert_allclose(value, 1, rtol=tol.identity if dtype != jnp.float16 else 1e-3)
    matching = lh.back_match(chain, {}, jnp.ones((2, 512)), jnp.ones((2, 512)), networks.squared_error)
    for scalar in SCALARS:
        np.testing.assert_allclose(lh.local_scalars(matching, scalar).inputs[0], 1, rtol=tol.identity)


def test_one_draw_gives_every_probe_signs_of_its_own():
    variables = [jnp.zeros((3, 5)), jnp.zeros(7)]
    words = random_words(jax.random.key(0), 22, 70)
    signs = np.concatenate([np.asarray(leaf).reshape(70, -1) for leaf in _signs(words, variables, 70)], axis=1)
    assert set(np.unique(signs)) == {-1, 1}
    assert len(np.unique(signs, axis=0)) == 70
    # The mean of 1,540 signs deviates by 0.025.
    assert abs(signs.mean()) < 0.1


def _outside_of_branches(program):
    """As `equations`, but for those of conditions."""
    for eqn in program.jaxpr.eqns:
        if eqn.primitive is not primitives.cond_p:
            yield eqn
            for held in inside(eqn):
                yield from _outside_of_branches(held)


@pytest.mark.once
@pytest.mark.parametrize("scalar", SCALARS)
def test_what_an_estimate_multiplies_stands_in_a_branch_and_runs_quickly_there(scalar):
    """Nothing is estimated at the steps between; and in a loop the CPU runs convolutions slowly (jax#12868)."""
    case = networks.convolutional()
    transform = lh.scale_by_local_hessian(case.chain, case.loss, scalar)
    step = updater(transform, case)
    program = jax.make_jaxpr(step)(case.params, transform.init(case.params), case.params)
    heavy = {primitives.conv_general_dilated_p, primitives.dot_general_p}
    branches = [eqn for eqn in equations(program) if eqn.primitive is primitives.cond_p]
    estimated = [each for branch in branches for held in inside(branch) for each in equations(held)]
    assert any(eqn.primitive in heavy for eqn in estimated)
    assert not any(eqn.primitive in heavy for eqn in _outside_of_branches(program))
    loops = [eqn for eqn in estimated if eqn.primitive in {primitives.scan_p, primitives.while_p}]
    assert bool(loops) == (scalar == "max")
    looped = [each.primitive for loop in loops for held in inside(loop) for each in equations(held)]
    assert primitives.conv_general_dilated_p not in looped or jax.default_backend() != "cpu"


@pytest.mark.once
def test_windows_larger_than_images_get_their_padding_before():
    """As everywhere else: three quarters of an estimate of a network for small images went into those of 2 by 2."""
    image = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    layer = lambda w, z: jnp.tanh(jax.lax.conv_general_dilated(z, w, (1, 1), "SAME", **image))
    chain = lh.Chain(
        [lh.Block("a", layer), lh.Block("b", layer), lh.Block("c", lambda w, z: z.reshape(len(z), -1) @ w)]
    )
    params = {"a": jnp.ones((3, 3, 2, 2)), "b": jnp.ones((3, 3, 2, 2)), "c": jnp.ones((8, 2))}
    transform = lh.scale_by_local_hessian(chain, networks.squared_error)
    x, y = jnp.ones((4, 2, 2, 2)), jnp.ones((4, 2))
    step = lambda grads, state, params: transform.update(grads, state, params, x=x, y=y)
    program = jax.make_jaxpr(step)(params, transform.init(params), params)
    convolutions = [eqn for eqn in equations(program) if eqn.primitive is primitives.conv_general_dilated_p]
    assert len(convolutions) == 2 + 2 + 1
    for eqn in convolutions:
        images, windows = (
            np.array(atom.aval.shape)[list(spec[2:])]
            for atom, spec in zip(eqn.invars, eqn.params["dimension_numbers"], strict=False)
        )
        assert (images >= windows).all() or jax.default_backend() != "cpu"


@pytest.mark.once
def test_the_update_is_the_formula(tol):
    case = networks.mlp(n=16)
    transform = lh.scale_by_local_hessian(case.chain, case.loss, normalize=False, damping=0.0, probes=400, samples=16)
    grads = gradient(case)
    updates, state = updater(transform, case)(grads, transform.init(case.params), case.params)
    exact = exact_scalars(case)
    names = case.chain.names
    for b, name in enumerate(names):
        above = np.prod([exact[other, "input"]["mean"] for other in names[b + 1 :]])
        expected = 1 / (exact[name, "params"]["mean"] * above)
        factor = float(state.factors(case.chain)[name])
        np.testing.assert_allclose(factor, expected, rtol=0.3)
        moved = jax.tree.map(lambda u, g, factor=factor: np.asarray(u - factor * g), updates[name], grads[name])
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(moved)) <= 100 * tol.identity * factor


@pytest.mark.parametrize("make", [networks.mlp, networks.normalized, networks.transformer])
def test_exact_scalars_of_every_block(make, tol):
    """Against dense Hessians: exact where the block splits or is small, and said so; estimates within their spread."""
    case = make()
    matching = lh.back_match(case.chain, case.params, case.x, case.y, case.loss, case.context)
    truth = exact_scalars(case)
    for scalar in SCALARS:
        found = lh.local_scalars(matching, scalar, probes=64)
        sides = {"params": (found.weights, found.exact_weights), "input": (found.inputs, found.exact_inputs)}
        for (block, wrt), exact in truth.items():
            b, (values, flags) = case.chain.index(block), sides[wrt]
            # Estimates from 64 products deviate by some 20 %.
            rtol = 100 * tol.eigenvalue if flags[b] else (1e-2 if scalar == "max" else 0.8)
            np.testing.assert_allclose(values[b], exact[scalar], rtol=rtol)
        assert bool(found.exact_weights[0])
        if make is networks.mlp:
            assert found.exact_weights.all()
            assert found.exact_inputs.all()


@pytest.mark.once
def test_given_scalars_take_the_place_of_estimates(tol):
    case = networks.mlp()
    matching = lh.back_match(case.chain, case.params, case.x, case.y, case.loss)
    scalars, exact = lh.local_scalars(matching), exact_scalars(case)
    transform = lh.scale_by_local_hessian(case.chain, case.loss, refresh=None, normalize=False, damping=0.0)
    state, grads = transform.init(case.params), gradient(case)
    updates, after = jax.jit(transform.update)(grads, state, case.params, scalars=scalars)
    names = case.chain.names
    for b, name in enumerate(names):
        above = np.prod([exact[other, "input"]["mean"] for other in names[b + 1 :]])
        expected = 1 / (exact[name, "params"]["mean"] * above)
        np.testing.assert_allclose(after.factors(case.chain)[name], expected, rtol=1e3 * tol.eigenvalue)
    again, kept = jax.jit(transform.update)(grads, after, case.params)
    np.testing.assert_array_equal(kept.log_factors, after.log_factors)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(updates)))
    with pytest.raises(ValueError, match=r"`scalars.inputs` must have one entry for each of 3 blocks: \(2,\)."):
        transform.update(grads, state, case.params, scalars=scalars._replace(inputs=jnp.ones(2)))


@pytest.mark.once
def test_the_first_samples_have_the_context_that_is_theirs():
    """A mask for each of seven samples, an estimate from three: as from a batch of these three, under jit too."""
    case = networks.mlp(widths=(4, 5, 3))
    masked = lambda p, z, context: networks.linear(p, z * context)
    chain = lh.Chain([lh.Block("layer0", masked), case.chain.blocks[1]])
    transform = lh.scale_by_local_hessian(chain, case.loss, samples=3)
    mask = (jnp.arange(28.0).reshape(7, 4) % 3 > 0).astype(case.x.dtype)
    update = lambda x, y, context: transform.update(
        case.params, transform.init(case.params), case.params, x=x, y=y, context=context
    )
    truth = update(case.x[:3], case.y[:3], mask[:3])[1]
    found = jax.jit(update)(case.x, case.y, mask)[1]
    for one, two in zip(found, truth, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_normalized_factors_have_geometric_mean_one(tol):
    case = networks.mlp()
    transform = lh.scale_by_local_hessian(case.chain, case.loss)
    _, state = updater(transform, case)(gradient(case), transform.init(case.params), case.params)
    counts = np.array([sum(leaf.size for leaf in jax.tree.leaves(case.params[name])) for name in case.chain.names])
    assert abs(float((counts * np.asarray(state.log_factors)).sum() / counts.sum())) < 1e3 * tol.identity


@pytest.mark.relaxed
@pytest.mark.once
def test_the_admission_exam_of_optax(count_compilations):
    """State shapes and dtypes stay, refreshes do not recompile, accumulation, masks and schedules work, bits of a
    step that is no refresh do not depend on the batch."""
    case = networks.mlp()
    schedule = optax.cosine_decay_schedule(0.1, 20)
    inner = lh.scale_amended_sgd(case.chain, case.loss, schedule, momentum=0.9, refresh=3)
    mask = {name: name != "head" for name in case.chain.names}
    frozen = optax.masked(optax.set_to_zero(), {name: not keep for name, keep in mask.items()})
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), inner, frozen)

    @jax.jit
    def step(params, state, x):
        grads = gradient(case._replace(x=x), params)
        updates, state = optimizer.update(grads, state, params, x=x, y=case.y)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(case.params)
    params, after = step(case.params, state, case.x)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (state, after))
    assert shapes[0] == shapes[1]
    params, after = step(params, after, case.x)
    batches = [case.x + 0.01 * i for i in range(5)]
    with count_compilations() as seen:
        for x in batches:
            params, after = step(params, after, x)
    assert seen.names == []
    assert jax.tree.map(lambda a, b: bool((a == b).all()), params["head"], case.params["head"]) == {
        "kernel": True,
        "bias": True,
    }
    many = optax.MultiSteps(lh.scale_amended_sgd(case.chain, case.loss, 0.1), every_k_schedule=2)
    state = many.init(case.params)
    for _ in range(2):
        updates, state = updater(many, case)(gradient(case), state, case.params)
    assert (norm(updates)) > 0


@pytest.mark.once
def test_without_jit_later_steps_compile_nothing(count_compilations):
    """A branch by itself is compiled at every call."""
    case = networks.mlp()
    other = case._replace(x=1.1 * case.x)
    grads, transform = gradient(case), lh.scale_by_local_hessian(case.chain, case.loss, refresh=2)
    _, state = transform.update(grads, transform.init(case.params), case.params, x=case.x, y=case.y)
    with count_compilations() as seen:
        _, state = transform.update(grads, state, case.params, x=case.x, y=case.y)
        ours, _ = transform.update(grads, state, case.params, x=other.x, y=case.y)
    assert seen.names == []
    theirs, _ = updater(transform, other)(grads, state, case.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), ours, theirs)


@pytest.mark.once
def test_it_stays_sane_as_the_loss_goes_to_zero():
    """Logits that grow without end: S of the last block vanishes, and the factors stay bounded."""
    case = networks.mlp()
    transform = lh.scale_by_local_hessian(case.chain, case.loss, refresh=1, decay=0.0)
    state, params, update = transform.init(case.params), case.params, updater(transform, case)
    for growth in (1.0, 30.0, 1e3, 1e6):
        params = {**params, "head": jax.tree.map(lambda leaf, growth=growth: growth * leaf, case.params["head"])}
        updates, state = update(gradient(case, params), state, params)
        assert np.isfinite(np.asarray(state.log_factors)).all()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.relaxed
@pytest.mark.once
def test_both_layouts_of_a_model_and_tied_arrays():
    shared = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)) / 2, jnp.result_type(float))
    model_params = {"tied": shared, "bias": jnp.zeros(4), "out": jnp.ones((4, 2)) / 3}

    def model(params, x):
        z = lh.mark(jnp.tanh(x @ params["tied"] + params["bias"]), "one")
        z = lh.mark(jnp.tanh(z @ params["tied"]), "two")
        return z @ params["out"]

    x, y = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)), shared.dtype), jnp.arange(6) % 2
    chain, blocks, _ = lh.chain_from_function(model, model_params, x)
    transform = lh.scale_by_local_hessian(chain, networks.cross_entropy)
    grads = jax.jit(jax.grad(lambda p: networks.cross_entropy(model(p, x), y).mean()))(model_params)
    updates, state = transform.update(grads, transform.init(model_params), model_params, x=x, y=y)
    factors = state.factors(chain)
    names = list(chain.names)
    np.testing.assert_allclose(updates["out"], factors[names[2]] * grads["out"], rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], factors[names[0]] * grads["bias"], rtol=1e-5)
    mean = (factors[names[0]] + factors[names[1]]) / 2
    np.testing.assert_allclose(updates["tied"], mean * grads["tied"], rtol=1e-5)
    of_blocks = jax.jit(jax.grad(lambda p: networks.cross_entropy(chain.forward(p, x)[-1], y).mean()))(blocks)
    _, same = transform.update(of_blocks, transform.init(blocks), blocks, x=x, y=y)
    np.testing.assert_allclose(same.log_factors, state.log_factors, rtol=1e-5)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scalar": "median"}, "`scalar` must be one of mean, range_mean, max, got 'median'."),
        ({"refresh": 0}, "`refresh` must be a whole number of at least 1, got 0."),
        ({"probes": 1}, "`probes` must be a whole number of at least 2, got 1."),
        ({"decay": 1.0}, "`decay` must be a finite number, at least 0 and below 1, got 1.0."),
        ({"damping": -1.0}, "`damping` must be a finite number, at least 0, got -1.0."),
        ({"damping": "much"}, "`damping` must be a finite number, at least 0, got 'much'."),
        ({"samples": 2.5}, "`samples` must be a whole number of at least 1, got 2.5."),
    ],
)
def test_messages_of_settings(settings, message):
    case = networks.mlp()
    with pytest.raises(ValueError, match="`") as error:
        lh.scale_by_local_hessian(case.chain, case.loss, **settings)
    assert str(error.value) == message


def test_messages_of_update():
    case = networks.mlp()
    transform = lh.scale_by_local_hessian(case.chain, case.loss)
    state = transform.init(case.params)
    with pytest.raises(ValueError, match=r"call `optimizer.update\(grads, state, params, x=x, y=y\)`"):
        transform.update(gradient(case), state, case.params)
    flat = jax.tree.leaves(case.params)
    with pytest.raises(ValueError, match="gradients and parameters must be a dict of the blocks' names"):
        transform.update(flat, state, flat, x=case.x, y=case.y)
