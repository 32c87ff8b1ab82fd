"""What holds on a mesh of eight devices, and as on a TPU: `test_devices.py` runs this in a process of its own."""

import functools
import re

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import threadpoolctl
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import localhessian as lh

DEVICES = 8
GATHERS = ("all-gather", "all-to-all", "collective-permute")


MESH = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def on(*axes):
    return NamedSharding(MESH, PartitionSpec(*axes))


def along(leaf):
    """The first axis that the devices divide."""
    axes = [i for i, size in enumerate(leaf.shape) if size % DEVICES == 0]
    return [None] * axes[0] + ["data"] if axes else []


def data_parallel(case):
    """The batch divided, the parameters whole."""
    return case._replace(
        params=jax.device_put(case.params, on()),
        x=jax.device_put(case.x, on("data")),
        y=jax.device_put(case.y, on("data")),
    )


def fully_sharded(case):
    """And the parameters, as FSDP lays them."""
    divided = jax.tree.map(lambda leaf: jax.device_put(leaf, on(*along(leaf))), case.params)
    return data_parallel(case)._replace(params=divided)


def of_eight(case):
    """With eight samples."""
    again = lambda leaf: jnp.concatenate([leaf, 1 + leaf[::-1] if leaf.dtype == jnp.result_type(float) else leaf])[:8]
    return case._replace(x=again(case.x), y=jnp.concatenate([case.y, case.y])[:8])


def mlp():
    return networks.mlp(widths=(8, 16, 8, 3), n=8)


def normalized():
    return of_eight(networks.convolutional())


@functools.cache
def matched(case, layout=None):
    """The back-matching, computed once."""
    return lh.back_match(*(case() if layout is None else layout(case())))


def near(ours, wanted, tolerance):
    ours, wanted = (np.asarray(one, np.float64) for one in (ours, wanted))
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def axes_of(array):
    """Of the mesh, along the leading axis."""
    return array.sharding.spec[:1]


def collectives(compiled):
    """The kinds of them in a program."""
    kinds = "|".join(("all-reduce", "reduce-scatter", *GATHERS))
    return set(re.findall(rf" ({kinds})\(", compiled.as_text()))


@pytest.mark.parametrize(
    ("case", "layout"),
    [(mlp, data_parallel), (mlp, fully_sharded), (normalized, data_parallel)],
    ids=["data parallel", "fully sharded", "batch norm"],
)
def test_numbers_are_those_of_one_device_and_lie_as_the_users(case, layout, tol):
    one, alone, matching = case(), matched(case), matched(case, layout)
    for name in one.chain.names:
        for ours, wanted, param in zip(
            *map(jax.tree.leaves, (matching.gradients[name], alone.gradients[name], matching.params[name])),
            strict=True,
        ):
            near(ours, wanted, 10 * tol.identity)
            assert ours.sharding.is_equivalent_to(param.sharding, ours.ndim)
    for ours, wanted in zip(matching.residuals[1:], alone.residuals[1:], strict=True):
        near(ours, wanted, 10 * tol.identity)
        assert axes_of(ours) == ("data",)
    assert {k: bool(v) for k, v in matching.coupled.items()} == {k: bool(v) for k, v in alone.coupled.items()}
    is_divided = layout is fully_sharded
    for name in one.chain.names:
        for wrt in ("params", "input") if matching.chain.index(name) else ("params",):
            if wrt == "params" and not one.params.get(name):
                continue
            H, wanted = (lh.local_hessian(m, name, wrt) for m in (matching, alone))
            v = np.random.default_rng(0).standard_normal(H.size).astype(H.dtype)
            product = H.mv(v)
            near(product, wanted.mv(v), 10 * tol.product)
            is_spread = wrt == "input" or (is_divided and any(map(along, jax.tree.leaves(one.params[name]))))
            assert axes_of(product) == (("data",) if is_spread and H.size % DEVICES == 0 else ())


def test_reports_are_those_of_one_device(tol):
    whole, spread = (lh.analyze(*case, blocks="layer0") for case in (mlp(), fully_sharded(mlp())))
    for ours, wanted in zip(spread.rows, whole.rows, strict=True):
        assert (ours.method, ours.status, ours.rank) == (wanted.method, wanted.status, wanted.rank)
        near([ours.lambda_max, ours.trace], [wanted.lambda_max, wanted.trace], 10 * tol.eigenvalue)
        assert ours.kappa_plus == pytest.approx(wanted.kappa_plus, rel=0.01)


def test_a_product_sums_over_the_mesh_and_moves_no_activations():
    for layout, allowed in ((data_parallel, {"all-reduce"}), (fully_sharded, {"all-reduce", *GATHERS})):
        H = lh.local_hessian(matched(mlp, layout), "layer0").prepare()
        found = collectives(jax.jit(lambda H, v: H.product(v)).lower(H, jnp.zeros(H.size, H.dtype)).compile())
        assert "all-reduce" in found
        assert found <= allowed
    # H_z of a divided batch needs none of the other samples.
    H = lh.local_hessian(matched(mlp, data_parallel), "layer0", "input").prepare()
    assert not collectives(jax.jit(lambda H, v: H.product(v)).lower(H, jnp.zeros(H.size, H.dtype)).compile())


def test_vectors_lie_over_every_axis_that_a_parameter_lies_over():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    on_both = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    one = mlp()
    kernel = jax.device_put(one.params["layer0"]["kernel"], on_both("data", "model"))
    params = jax.device_put(one.params, on_both()) | {"layer0": {**one.params["layer0"], "kernel": kernel}}
    matching = lh.back_match(one.chain, params, *jax.device_put((one.x, one.y), on_both("data")), one.loss)
    assert axes_of(lh.local_hessian(matching, "layer0").mv(jnp.ones(144))) == (("data", "model"),)
    assert axes_of(lh.local_hessian(matching, "layer0", "input").mv(jnp.ones(64))) == ("data",)
    assert axes_of(lh.local_hessian(matching, "layer1").mv(jnp.ones(136))) == ()


def test_the_compiled_engine_divides_its_basis(tol):
    one = networks.mlp(widths=(64, 256, 8), n=8)
    found, bytes_held = {}, {}
    method = lh.Lanczos(which="largest", k=1, max_matvecs=20, basis_size=20)
    for name, case in (("one", one), ("divided", fully_sharded(one))):
        H = lh.local_hessian(lh.back_match(*case), "layer0").prepare()
        program = jax.jit(lambda H: lh.spectrum(H, method, vectors=1)).lower(H).compile()
        found[name] = program(H)
        bytes_held[name] = program.memory_analysis().temp_size_in_bytes
    near(found["divided"].eigenvalues[-1], found["one"].eigenvalues[-1], 1e-4)  # its own tolerance
    assert axes_of(found["divided"].vectors) == ("data",)
    assert bytes_held["divided"] < bytes_held["one"] / 4


def test_samples_are_spread_over_the_mesh(tol):
    both = matched(mlp), matched(mlp, data_parallel)
    alone, spread = (lh.local_hessian(matching, "layer1", "input", samples=range(8)) for matching in both)
    v = np.random.default_rng(0).standard_normal((8, alone.size)).astype(alone.dtype)
    product = spread.mv(v)
    near(product, alone.mv(v), 10 * tol.product)
    assert axes_of(product) == ("data",)


def test_estimates_are_those_of_one_device(tol):
    alone, spread = (lh.local_hessian(matching, "layer0") for matching in (matched(mlp), matched(mlp, fully_sharded)))
    near(lh.trace(spread).value, lh.trace(alone).value, 10 * tol.identity)
    ours, wanted = (lh.spectral_density(H, probes=2, steps=4) for H in (spread, alone))
    near(ours.cumulative.value, wanted.cumulative.value, 1e3 * tol.identity)  # Ritz values beside the edges of bins


def test_programs_with_batches_of_decompositions_end(tol):
    """Every CPU device makes the same call at the same time; a BLAS with threads of its own did not come to an end."""
    one, spread = normalized(), data_parallel(normalized())

    def of(matching):
        return lh.local_hessian(matching, "conv2", "input", samples=range(8))

    @jax.jit
    def largest(params, x, y):
        return lh.spectrum(of(lh.back_match(one.chain, params, x, y, one.loss)), lh.Dense()).lambda_max

    wanted = lh.spectrum(of(matched(normalized)), lh.Dense()).lambda_max
    with threadpoolctl.threadpool_limits(2, "blas"):
        near(largest(spread.params, spread.x, spread.y), wanted, 10 * tol.eigenvalue)


def test_a_users_own_constraint_hides_nothing():
    one = mlp()

    def constrained(params, z):
        return jax.lax.with_sharding_constraint(networks.tanh_dense(params, z), on("data"))

    chain = lh.Chain([lh.Block("layer0", constrained), *one.chain.blocks[1:]])
    matching = lh.back_match(*data_parallel(one)._replace(chain=chain))
    assert not matching.coupled["layer0"]
    assert lh.spectrum(lh.local_hessian(matching, "layer0")).method.startswith("Structured")
