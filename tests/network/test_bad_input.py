"""Every message for bad input, as a sentence."""

import re

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import localhessian as lh

pytestmark = pytest.mark.once


def case(**changes):
    return networks.mlp()._replace(**changes)


def expect(error, sentence):
    return pytest.raises(error, match=re.escape(sentence))


def without(params, name):
    return {key: value for key, value in params.items() if key != name}


def test_wrong_parameter_shape_names_the_block():
    params = case().params | {"layer1": networks.dense_params(np.random.default_rng(0), 4, 5)}
    with expect(ValueError, "block `layer1` cannot be applied to an input of float"):
        lh.back_match(*case(params=params))


def test_missing_parameters_name_the_block():
    with expect(ValueError, "`params` has no entry for block `layer1`, and the block cannot be applied without"):
        lh.back_match(*case(params=without(case().params, "layer1")))


def test_unknown_block_suggests_the_nearest():
    with expect(KeyError, "there is no block `layer9` in this chain. Did you mean `layer"):
        lh.back_match(*case(params=case().params | {"layer9": ()}))
    with expect(KeyError, "Did you mean `head`? Its blocks are `layer0`, `layer1`, `head`."):
        lh.local_hessian(lh.back_match(*case()), "haed")


def test_empty_batch():
    with expect(ValueError, "`x` is an empty batch, got float"):
        lh.back_match(*case(x=case().x[:0], y=case().y[:0]))


def test_inputs_without_a_common_sample_axis():
    with expect(ValueError, "`x` must hold arrays that share a leading axis of samples"):
        lh.back_match(*case(x={"a": jnp.zeros((3, 4)), "b": jnp.zeros((2, 4))}))


def test_negative_labels_are_no_last_classes():
    y = case().y
    for bad in (y.at[1].set(-1), y.at[:2].set(-3)):
        with expect(ValueError, "`y` holds negative labels, which the loss counts from the last of 3 classes: leave"):
            lh.back_match(*case(y=bad))
    flat = jax.tree.map(jnp.zeros_like, case().params)  # every class as likely: at these outputs no label matters
    with expect(ValueError, "`y` holds negative labels"):
        lh.back_match(*case(params=flat, y=y.at[1].set(-1)))
    with expect(ValueError, "`y` holds negative labels"):
        lh.propagate(*case(y=y - 1)[:5], lh.GradientStep(0.1))

    def masked(z, y):
        return jnp.where(y >= 0, networks.cross_entropy(z, jnp.maximum(y, 0)), 0)

    def one_hot(z, y):
        return -(jax.nn.one_hot(y, 3) * jax.nn.log_softmax(z)).sum(-1)

    def regression(z, y):
        return ((z - y[:, None].astype(z.dtype)) ** 2).sum(-1)

    def without_labels(z, y):
        return (z**2).sum(-1)

    # Weights of zero, other meanings of integers, and labels that are far out of range for a reason.
    for loss in (masked, one_hot, regression, without_labels):
        assert lh.back_match(*case(y=y.at[1].set(-1), loss=loss)).samples == 7
    assert lh.back_match(*case(y=y.at[1].set(-100), loss=masked)).samples == 7


def test_labels_that_do_not_fit():
    with expect(ValueError, "`loss(z_B, y)` cannot be applied to the network's output float"):
        lh.back_match(*case(y=case().y[:3]))


def test_loss_that_is_not_per_sample():
    def mean(z, y):
        return networks.cross_entropy(z, y).mean()

    with expect(ValueError, "`loss` must return one loss for each of the 7 samples, shape (7,), got float"):
        lh.back_match(*case(loss=mean))


def test_block_that_drops_the_sample_axis():
    chain = lh.Chain([lh.Block("pool", lambda params, z: z.mean(0)), lh.Block("head", networks.linear)])
    with expect(ValueError, "block `pool` must keep the 7 samples on the leading axis"):
        lh.back_match(*case(chain=chain, params={"head": case().params["head"]}))


def test_block_that_returns_integers():
    chain = lh.Chain([lh.Block("argmax", lambda params, z: z.argmax(1)), lh.Block("head", networks.linear)])
    with expect(ValueError, "block `argmax` returns no floating-point array, got int"):
        lh.back_match(*case(chain=chain, params={"head": case().params["head"]}))


def test_non_finite_parameters_name_block_and_array():
    params = case().params
    params["layer1"]["bias"] = params["layer1"]["bias"].at[0].set(jnp.nan)
    with expect(ValueError, "the parameters of block `layer1` are not finite at `['bias']`"):
        lh.back_match(*case(params=params))


def test_non_finite_data():
    with expect(ValueError, "`x` is not finite: remove NaN and infinity from it."):
        lh.back_match(*case(x=case().x.at[0, 0].set(jnp.inf)))


def test_overflow_names_the_block():
    def overflow(params, z):
        return networks.tanh_dense(params, z) * jnp.finfo(z.dtype).max * 2

    chain = lh.Chain([lh.Block("layer0", networks.tanh_dense), lh.Block("layer1", overflow), case().chain.blocks[2]])
    with expect(ValueError, "the output of block `layer1` is not finite: its parameters and input are finite"):
        lh.back_match(*case(chain=chain))


def test_model_that_answers_differently_twice():
    chain = lh.Chain([lh.Block("noise", lambda params, z: z * np.random.default_rng().random()), *case().chain.blocks])
    with expect(ValueError, "block `noise` answers differently when called twice with the same input"):
        lh.back_match(*case(chain=chain))


def test_custom_vjp_has_no_forward_derivative():
    @jax.custom_vjp
    def double(z):
        return 2 * z

    double.defvjp(lambda z: (2 * z, None), lambda _, g: (2 * g,))
    chain = lh.Chain([lh.Block("double", lambda params, z: double(z)), *case().chain.blocks])
    with expect(ValueError, "block `double` has no forward derivative (`jax.custom_vjp` allows none)"):
        lh.back_match(*case(chain=chain))


def test_block_without_parameters_has_no_H_W():
    matching = lh.back_match(*networks.convolutional())
    with expect(ValueError, "block `flatten` has no floating-point parameters, so its H_W does not exist"):
        lh.local_hessian(matching, "flatten")


def test_integer_input_has_no_H_z():
    matching = lh.back_match(*networks.transformer())
    with expect(ValueError, "the input of block `embed` holds integers"):
        lh.local_hessian(matching, "embed", "input")


def test_samples_of_a_coupled_block():
    matching = lh.back_match(*networks.normalized())
    with expect(ValueError, "block `norm` couples its samples (batch normalization in training mode, or the loss), so"):
        lh.local_hessian(matching, "norm", "input", samples=4)


def test_samples_out_of_range_or_of_parameters():
    matching = lh.back_match(*case())
    with expect(ValueError, "boolean mask of length 7, into the 7 samples of the batch, got 7."):
        lh.local_hessian(matching, "head", "input", samples=7)
    with expect(ValueError, '`samples` belongs to wrt="input"'):
        lh.local_hessian(matching, "head", samples=1)


def test_unknown_wrt_and_part():
    matching = lh.back_match(*case())
    with expect(ValueError, "`wrt` must be one of 'params', 'input', got 'weights'."):
        lh.local_hessian(matching, "head", "weights")
    with expect(ValueError, "`part` must be one of 'gauss_newton', 'full', 'residual', got 'hessian'."):
        lh.local_hessian(matching, "head", part="hessian")


def test_selection_of_nothing():
    matching = lh.back_match(*case())
    with expect(ValueError, "`select` keeps no parameter of block `head`, whose parameters are ['bias'], ['kernel']"):
        lh.local_hessian(matching, "head", select=lambda path: "scale" in path)


def test_a_block_that_closes_over_what_is_traced_is_told():
    def kappa(scale):
        chain = lh.Chain([lh.Block("tanh", lambda w, z: jnp.tanh(scale * (z @ w))), lh.Block("b", lambda w, z: z @ w)])
        params = {"tanh": jnp.eye(2), "b": jnp.ones((2, 2))}
        loss = lambda z, y: 0.5 * ((z - y) ** 2).sum(1)
        return lh.measure(chain, params, jnp.ones((3, 2)), jnp.zeros((3, 2)), loss).figures.kappa_plus

    message = r"block `tanh` closes over a value of float\d\d\[\] that `jax\.jit`, `jax\.vmap` or `jax\.grad` traces"
    for transformed in (jax.jit(kappa), lambda scale: jax.vmap(kappa)(scale[None])):
        with pytest.raises(ValueError, match=message):
            transformed(jnp.asarray(2.0))
