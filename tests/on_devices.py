"""What holds on a mesh of eight devices, and as on a TPU: `test_devices.py` runs this in a process of its own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import localhessian as lh
from tests import networks

DEVICES = 8
GATHERS = ("all-gather", "all-to-all", "collective-permute")


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def on(mesh, *axes):
    return NamedSharding(mesh, PartitionSpec(*axes))


def along(leaf):
    """The first axis that the devices divide."""
    axes = [i for i, size in enumerate(leaf.shape) if size % DEVICES == 0]
    return [None] * axes[0] + ["data"] if axes else []


def data_parallel(case, mesh):
    """The batch divided, the parameters whole."""
    return case._replace(
        params=jax.device_put(case.params, on(mesh)),
        x=jax.device_put(case.x, on(mesh, "data")),
        y=jax.device_put(case.y, on(mesh, "data")),
    )


def fully_sharded(case, mesh):
    """And the parameters, as FSDP lays them."""
    divided = jax.tree.map(lambda leaf: jax.device_put(leaf, on(mesh, *along(leaf))), case.params)
    return data_parallel(case, mesh)._replace(params=divided)


def of_eight(case):
    """With eight samples."""
    again = lambda leaf: jnp.concatenate([leaf, 1 + leaf[::-1] if leaf.dtype == jnp.zeros(()).dtype else leaf])[:8]
    return case._replace(x=again(case.x), y=jnp.concatenate([case.y, case.y])[:8])


def mlp():
    return networks.mlp(widths=(8, 16, 8, 3), n=8)


CASES = {
    "mlp": mlp,
    "batch norm": lambda: of_eight(networks.convolutional()),
    "attention": lambda: of_eight(networks.transformer()),
}
LAYOUTS = {"data parallel": data_parallel, "fully sharded": fully_sharded}


def near(ours, wanted, tolerance):
    ours, wanted = (np.asarray(one, np.float64) for one in (ours, wanted))
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def axes_of(array):
    """Of the mesh, along the leading axis."""
    return array.sharding.spec[:1]


def collectives(compiled):
    return set(re.findall(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\(", compiled.as_text()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_one_device_and_lie_as_the_users(case, layout, mesh, tol):
    one = CASES[case]()
    spread = LAYOUTS[layout](one, mesh)
    alone, matching = lh.back_match(*one), lh.back_match(*spread)
    for name in one.chain.names:
        for ours, wanted, param in zip(
            *map(jax.tree.leaves, (matching.gradients[name], alone.gradients[name], spread.params.get(name, ()))),
            strict=True,
        ):
            near(ours, wanted, 10 * tol.identity)
            assert ours.sharding.is_equivalent_to(param.sharding, ours.ndim)
    for ours, wanted in zip(matching.residuals[1:], alone.residuals[1:], strict=True):
        near(ours, wanted, 10 * tol.identity)
        assert axes_of(ours) == ("data",)
    assert {k: bool(v) for k, v in matching.coupled.items()} == {k: bool(v) for k, v in alone.coupled.items()}
    is_divided = layout == "fully sharded"
    for name in one.chain.names:
        for wrt in ("params", "input") if matching.chain.index(name) else ("params",):
            if wrt == "params" and not one.params.get(name):
                continue
            H, wanted = (lh.local_hessian(m, name, wrt) for m in (matching, alone))
            v = np.random.default_rng(0).standard_normal(H.size).astype(H.dtype)
            product = H.mv(v)
            near(product, wanted.mv(v), 10 * tol.product)
            divides = H.size % DEVICES == 0 and (wrt == "input" or (is_divided and any(map(along, jax.tree.leaves(one.params[name])))))
            assert axes_of(product) == (("data",) if divides else ())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reports_are_those_of_one_device(layout, mesh, tol):
    one = mlp()
    whole, spread = (lh.analyze(*case, blocks=("layer0", "head")) for case in (one, LAYOUTS[layout](one, mesh)))
    for ours, wanted in zip(spread.rows, whole.rows, strict=True):
        assert (ours.method, ours.status, ours.rank) == (wanted.method, wanted.status, wanted.rank)
        near([ours.lambda_max, ours.trace], [wanted.lambda_max, wanted.trace], 10 * tol.eigenvalue)
        assert ours.kappa_plus == pytest.approx(wanted.kappa_plus, rel=0.01)


def test_a_product_sums_over_the_mesh_and_moves_no_activations(mesh):
    one = mlp()
    for layout, allowed in ((data_parallel, {"all-reduce"}), (fully_sharded, {"all-reduce", *GATHERS})):
        matching = lh.back_match(*layout(one, mesh))
        H = lh.local_hessian(matching, "layer0").prepare()
        found = collectives(jax.jit(lambda H, v: H.product(v)).lower(H, jnp.zeros(H.size, H.dtype)).compile())
        assert "all-reduce" in found
        assert found <= allowed
    # H_z of a divided batch needs none of the other samples.
    H = lh.local_hessian(lh.back_match(*data_parallel(one, mesh)), "layer0", "input").prepare()
    assert not collectives(jax.jit(lambda H, v: H.product(v)).lower(H, jnp.zeros(H.size, H.dtype)).compile())


def test_the_compiled_engine_divides_its_basis(mesh, tol):
    one = networks.mlp(widths=(64, 256, 8), n=8)
    found, bytes_held = {}, {}
    for name, case in (("one", one), ("divided", fully_sharded(one, mesh))):
        H = lh.local_hessian(lh.back_match(*case), "layer0").prepare()
        method = lh.Lanczos(which="largest", k=1, max_matvecs=20, basis_size=20)
        program = jax.jit(lambda H: lh.spectrum(H, method, vectors=1)).lower(H).compile()
        found[name] = program(H)
        bytes_held[name] = program.memory_analysis().temp_size_in_bytes
    near(found["divided"].eigenvalues[-1], found["one"].eigenvalues[-1], 1e-4)  # its own tolerance
    assert axes_of(found["divided"].vectors) == ("data",)
    assert bytes_held["divided"] < bytes_held["one"] / 4


def test_samples_are_spread_over_the_mesh(mesh, tol):
    one = mlp()
    alone, spread = (
        lh.local_hessian(lh.back_match(*case), "layer1", "input", samples=range(8)) for case in (one, data_parallel(one, mesh))
    )
    v = np.random.default_rng(0).standard_normal((8, alone.size)).astype(alone.dtype)
    product = spread.mv(v)
    near(product, alone.mv(v), 10 * tol.product)
    assert axes_of(product) == ("data",)


def test_estimates_are_those_of_one_device(mesh, tol):
    one = mlp()
    alone, spread = (lh.local_hessian(lh.back_match(*case), "layer0") for case in (one, fully_sharded(one, mesh)))
    near(lh.trace(spread).value, lh.trace(alone).value, 10 * tol.identity)
    ours, wanted = (lh.spectral_density(H, probes=2, steps=4) for H in (spread, alone))
    near(ours.cumulative.value, wanted.cumulative.value, 1e3 * tol.identity)  # Ritz values beside the edges of bins


def test_programs_with_batches_of_decompositions_end(mesh, tol):
    """On several CPU devices of one process LAPACK's batches waited for each other for ever."""
    one = mlp()
    spread = data_parallel(one, mesh)

    @jax.jit
    def measured(params, x, y):
        return lh.measure(one.chain, params, x, y, one.loss, blocks="layer1", wrt="input", samples_per_block=8)

    ours, wanted = (measured(case.params, case.x, case.y).figures for case in (spread, one))
    near(ours.lambda_max, wanted.lambda_max, 10 * tol.eigenvalue)
    near(ours.trace, wanted.trace, 10 * tol.eigenvalue)


def test_a_users_own_constraint_hides_nothing(mesh):
    one = mlp()

    def constrained(params, z):
        return jax.lax.with_sharding_constraint(networks.tanh_dense(params, z), on(mesh, "data"))

    chain = lh.Chain([lh.Block("layer0", constrained), *one.chain.blocks[1:]])
    matching = lh.back_match(*data_parallel(one, mesh)._replace(chain=chain))
    assert not matching.coupled["layer0"]
    assert lh.spectrum(lh.local_hessian(matching, "layer0")).method.startswith("Structured")
