"""What an analysis leaves for the next one: programs, and what was traced."""

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
