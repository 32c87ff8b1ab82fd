"""Every family of the zoo: the cut, the identities, the whole path, training steps that do not recompile."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from flax import nnx

import localhessian as lh
from localhessian.lab import zoo

pytestmark = [pytest.mark.relaxed, pytest.mark.once]

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.result_type(float))
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 7, (4, 6)))
LABELS = jnp.asarray([0, 1, 2, 1])

FAMILIES = {
    "mlp": lambda rngs: zoo.mlp((192, 5, 5, 3), rngs=rngs),
    "mlp with batch norm": lambda rngs: zoo.mlp((192, 5, 3), norm="batch", activation="relu", init="he", rngs=rngs),
    "deep linear": lambda rngs: zoo.mlp((192, 4, 4, 4, 3), activation="linear", init="orthogonal", rngs=rngs),
    "vgg": lambda rngs: zoo.vgg(11, width=1 / 32, norm=None, stages=2, classes=3, rngs=rngs),
    "vgg with batch norm": lambda rngs: zoo.vgg(11, width=1 / 32, stages=2, classes=3, rngs=rngs),
    "resnet": lambda rngs: zoo.resnet(8, width=2, classes=3, rngs=rngs),
    "resnet, preactivation": lambda rngs: zoo.resnet(8, width=2, preactivation=True, classes=3, rngs=rngs),
    "resnet without skips and norms": lambda rngs: zoo.resnet(8, width=2, skip=False, norm=None, classes=3, rngs=rngs),
    "vit": lambda rngs: zoo.vit(image=8, patch=4, classes=3, layers=2, dim=4, heads=2, rngs=rngs),
    "gpt": lambda rngs: zoo.gpt(vocabulary=7, context=6, layers=2, dim=4, heads=2, rngs=rngs),
}
COUPLED = {"mlp with batch norm", "vgg with batch norm", "resnet", "resnet, preactivation"}


def of(name):
    """The model in training mode, its cut, and data."""
    model = FAMILIES[name](nnx.Rngs(0))
    model.train()
    if name == "gpt":
        x, y = TOKENS, TOKENS
    else:
        x, y = IMAGES.reshape(4, -1) if name.startswith(("mlp", "deep")) else IMAGES, LABELS
    return model, lh.chain_from_nnx(model, x, at="layers.*"), x, y


def loss(z, y):
    losses = optax.softmax_cross_entropy_with_integer_labels(z, y)
    return losses.mean(axis=1) if losses.ndim == 2 else losses


@pytest.mark.parametrize("name", networks.waiting(FAMILIES, ("mlp with batch norm", "resnet, preactivation", "gpt")))
def test_the_chain_is_the_model_and_its_identities_hold(name, tol):
    model, (chain, params, context), x, y = of(name)
    out = jax.jit(lambda *given: chain.forward(*given)[-1])(params, x, context)
    direct = nnx.jit(lambda model, x: model(x))(model, x)
    np.testing.assert_allclose(out, direct, rtol=10 * tol.identity, atol=10 * tol.identity)
    few = chain.names[:2] + chain.names[-1:]
    lh.check_identities(chain, params, x, y, loss, context, blocks=few)
    matching = lh.back_match(chain, params, x, y, loss, context)
    assert any(bool(coupled) for coupled in matching.coupled.values()) == (name in COUPLED)


@pytest.mark.parametrize("name", networks.waiting(FAMILIES, ("mlp with batch norm", "vit")))
def test_a_step_of_gradient_solvers_is_one_of_sgd(name, tol):
    """Block by block, relative to the step; what the weights' own rounding adds is known."""
    _, (chain, params, context), x, y = of(name)
    step = jax.jit(lambda params: lh.propagate(chain, params, x, y, loss, lh.GradientStep(0.1), context=context)[0])
    moved = step(params)
    grads = jax.jit(jax.grad(lambda params: loss(chain.forward(params, x, context)[-1], y).mean()))(params)
    flat = lambda tree: np.concatenate([np.zeros(0), *(np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(tree))])
    eps = float(jnp.finfo(jnp.result_type(float)).eps)
    for block in chain.names:
        new, old, gradient = (flat(tree[block]) for tree in (moved, params, grads))
        error, size, weights = map(np.linalg.norm, (new - old + 0.1 * gradient, gradient, old))
        assert error <= 10 * tol.identity * 0.1 * size + 2 * eps * weights


@pytest.mark.parametrize("name", networks.waiting(FAMILIES, ("mlp with batch norm",)))
def test_analyze_and_a_training_step_that_does_not_recompile_it(name, count_compilations):
    _, (chain, params, context), x, y = of(name)
    chosen = chain.names[1:2]
    first = lh.analyze(chain, params, x, y, loss, context, blocks=chosen, samples_per_block=2)
    assert all(row.converged and row.rank > 0 for row in first.rows)
    grads = jax.jit(jax.grad(lambda params: loss(chain.forward(params, x, context)[-1], y).mean()))(params)
    moved = jax.tree.map(lambda p, g: jnp.asarray(np.asarray(p) - 0.1 * np.asarray(g)), params, grads)
    after = chain.next_context(params, x, context) if context is not None else None
    with count_compilations() as seen:
        second = lh.analyze(chain, moved, x, y, loss, after, blocks=chosen, samples_per_block=2)
    assert seen.names == []
    assert [row.lambda_max for row in first.rows] != [row.lambda_max for row in second.rows]


@pytest.mark.parametrize("name", networks.waiting(FAMILIES, ("mlp with batch norm", "vit")))
def test_a_model_is_built_by_one_program(name, count_compilations):
    """What flax makes array by array, to its last digits: an unoptimized program rounds on its own."""
    jax.clear_caches()
    key = jax.random.key(3)
    with count_compilations() as seen:
        model = zoo.built(FAMILIES[name], key)
    # Batch normalization in flax makes its zeros and ones where it is asked for shapes, too.
    assert [one for one in seen.names if one != "jit(<lambda>)"] == ["jit(begin)"]
    (graph, *ours), (graph_of_flax, *theirs) = (
        nnx.split(one, nnx.Param, ...) for one in (model, FAMILIES[name](nnx.Rngs(key)))
    )
    assert graph == graph_of_flax
    eps = float(jnp.finfo(jnp.result_type(float)).eps)
    numbers = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    for one, other in zip(*(map(numbers, jax.tree.leaves(states)) for states in (ours, theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=8 * eps * float(jnp.max(jnp.abs(other))))


@pytest.mark.once
def test_layers_begin_by_one_program_each_with_the_bits_of_the_random_numbers_alone(count_compilations):
    """Published runs hang on the last bits."""
    key = jax.random.key(3)
    with count_compilations() as seen:
        params = zoo.dense_network((6, 11, 11, 11, 3), key, activation="relu").params
    assert len([name for name in seen.names if "fold_in" not in name and "convert" not in name]) == 3
    for i, name in enumerate(params):
        shape, gain = params[name]["kernel"].shape, 1.0 if name == "head" else 2.0
        numbers = np.asarray(jax.random.normal(jax.random.fold_in(key, i), shape, jnp.result_type(float)))
        np.testing.assert_array_equal(params[name]["kernel"], numbers * (gain / shape[0]) ** 0.5)
        np.testing.assert_array_equal(params[name]["bias"], np.zeros(shape[1]))


def test_a_model_of_ones_own_is_built_by_one_program_in_jit(count_compilations):
    def build():
        return zoo.mlp((3, 5, 4, 2), rngs=nnx.Rngs(0))

    def programs(build):
        jax.clear_caches()
        with count_compilations() as seen:
            jax.block_until_ready(nnx.state(build()))
        return seen.count

    assert programs(nnx.jit(build)) == 1
    assert programs(build) > 3


def test_equal_layers_share_their_programs(count_compilations):
    """A transformer three times as deep compiles not one program more."""

    def programs(layers):
        model = zoo.gpt(vocabulary=7, context=5, layers=layers, dim=6, heads=2, rngs=nnx.Rngs(0))
        x = TOKENS[:, :5]
        chain, params, context = lh.chain_from_nnx(model, x, at="layers.*")
        jax.clear_caches()
        with count_compilations() as seen:
            lh.analyze(chain, params, x, x, loss, context, samples_per_block=2, wrt=("input",))
        return sorted(seen.names)

    shallow = programs(2)
    assert len(programs(6)) <= len(shallow)


@pytest.mark.full
@pytest.mark.parametrize("name", zoo.CASES)
def test_cases_at_full_size(name):
    case = zoo.case(name)
    matching = lh.back_match(case.cut.chain, case.cut.params, case.x, case.y, case.loss, case.cut.context)
    first, last = case.cut.chain.names[1], case.cut.chain.names[-1]
    for block in (first, last):
        found = lh.spectrum(lh.local_hessian(matching, block), lh.Lanczos(which="largest", k=1))
        assert lh.Status(int(found.status)) is lh.Status.CONVERGED


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda rngs: zoo.mlp((3,), rngs=rngs), "`widths` must hold the input's and the output's at least, got (3,)."),
        (lambda rngs: zoo.mlp((3, 2), init="zeros", rngs=rngs), "`init` must be one of orthogonal, he, lecun, xavier"),
        (lambda rngs: zoo.vgg(12, rngs=rngs), "`depth` must be one of 11, 13, 16, 19, got 12."),
        (lambda rngs: zoo.resnet(21, rngs=rngs), "`depth` must be 18, 34 or 6 n + 2 (8, 14, 20, ...), got 21."),
        (lambda rngs: zoo.vit(image=8, patch=3, rngs=rngs), "`image` must be a multiple of `patch`, got 8 and 3."),
        (lambda rngs: zoo.gpt(dim=6, heads=4, rngs=rngs), "`dim` must be a multiple of `heads`, got 6 and 4."),
        (lambda rngs: zoo.mlp((3, 2, 2), norm="group", rngs=rngs), "`norm` must be one of batch, layer or None"),
        (lambda rngs: zoo.mlp((3, 2, 2), activation="step", rngs=rngs), "`activation` must be one of linear, relu"),
    ],
)
def test_messages(build, message):
    with pytest.raises(ValueError, match="`") as error:
        build(nnx.Rngs(0))
    assert message in str(error.value)
