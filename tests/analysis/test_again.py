"""Which programs an analysis compiles, and what it leaves for the next one."""

import jax
import networks
import pytest

import localhessian as lh

pytestmark = pytest.mark.once


def test_new_numbers_of_the_same_shapes_neither_trace_nor_compile(count_compilations):
    case, traced = networks.convolutional(), []

    def counted(block):
        return lh.Block(block.name, lambda params, z, context: traced.append(block.name) or block(params, z, context))

    case = case._replace(chain=lh.Chain([counted(block) for block in case.chain.blocks]))
    lh.analyze(*case, samples_per_block=2)
    assert set(traced) == set(case.chain.names)
    traced.clear()
    changed = case._replace(params=jax.tree.map(lambda leaf: leaf * 1.25, case.params), x=case.x + 0.5)
    with count_compilations() as seen:
        lh.analyze(*changed, samples_per_block=2)
    assert seen.names == []
    assert traced == []


def test_equal_blocks_compile_once(count_compilations):
    case = networks.mlp(networks.skip_dense, (5, 5, 5, 5, 5, 3))
    lh.analyze(*case, blocks=["layer1"])
    with count_compilations() as seen:
        lh.analyze(*case, blocks=["layer2", "layer3"])
    assert seen.names == []


def _figures(case):
    """One of every kind, of a block in the middle."""
    matching = lh.back_match(*case)
    _ = matching.displacements, matching.targets
    H = lh.local_hessian(matching, "layer1", "params")
    for method in (None, lh.Dense(), lh.Lanczos(max_matvecs=8), lh.GolubKahan(max_matvecs=8)):
        found = lh.spectrum(H, method, throw=False)
        lh.condition_number(found)
        lh.certify(found, frobenius=1e9)
        _ = found.failure_probability(), found.converged, found.lambda_max, repr(found)
    for method in (None, lh.Hutchinson(4), lh.HutchPlusPlus(6), lh.XTrace(4), lh.Structured()):
        lh.trace(H, method)
    for figure in (lh.frobenius_norm, lh.range_mean, lh.diagonal):
        figure(H, lh.Hutchinson(4))
    lh.spectral_density(H, probes=2, steps=8)
    lh.spectral_density(lh.spectrum(H))
    lh.local_scalars(matching)


def _measured(case):
    return jax.jit(lambda params: lh.measure(case.chain, params, *case[2:]))(case.params)


# The dtype of numbers where this is asked for, keys, unit vectors, and what was multiplied one after the other;
# in a program, what a loss writes down by itself, in any version of JAX.
ALONE = {"convert_element_type", "_moveaxis", "stack", "stage", "unstack"}
WRITTEN = {"convert_element_type", "broadcast_in_dim", "iota", "neg", "subtract"}


@pytest.mark.parametrize(
    ("run", "alone"), [(_figures, ALONE), (lambda case: lh.analyze(*case), ALONE), (_measured, WRITTEN)]
)
def test_operations_are_no_programs_of_their_own(run, alone, count_compilations):
    """Each takes some 15 ms to compile, whatever it computes."""
    case = networks.mlp()
    jax.clear_caches()
    with count_compilations() as seen:
        run(case)
    assert seen.operations <= alone
