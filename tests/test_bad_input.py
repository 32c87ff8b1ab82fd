"""Every public function, given the same absurd values: a sentence that names the parameter, never an internal error."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import localhessian as lh

pytestmark = pytest.mark.once

ABSURD = {
    "None": None,
    "number": 3,
    "text": "text",
    "object": object(),
    "list": [1, 2],
    "array": jnp.ones((3, 2)),
    "class": lh.Lanczos,
    "NaN": float("nan"),
}
LEFT_OUT = {
    # Data: made by the library, not by hand.
    *("Audit", "BackMatching", "BlockInfo", "ConditionNumber", "Cut", "Density", "Explanation", "IdentityCheck"),
    *("Interval", "LinearMap", "LocalScalars", "PropagateInfo", "QuadratureEstimate", "Report", "Row", "Spectrum"),
    *("Summary", "SymmetricOperator", "TraceEstimate", "Status"),
    # Errors are raised, not called.
    *("CutError", "IdentityError", "SpectrumError", "SpectrumInterrupt"),
    # Their models are read by flax and equinox.
    *("chain_from_nnx", "chain_from_linen", "chain_from_equinox"),
}


def setting():
    blocks = [lh.Block("a", lambda p, z: jnp.tanh(z @ p)), lh.Block("b", lambda p, z: z @ p)]
    chain = lh.Chain(blocks)
    params = {"a": jnp.eye(3), "b": jnp.ones((3, 2))}
    x, y = jnp.sin(jnp.arange(12.0)).reshape(4, 3), jnp.array([0, 1, 1, 0])
    loss = optax.softmax_cross_entropy_with_integer_labels
    matching = lh.back_match(chain, params, x, y, loss)
    operator = lh.local_hessian(matching, "a")
    spectrum = lh.spectrum(operator, lh.Dense(), vectors=1)
    given = {
        "chain": chain,
        "params": params,
        "x": x,
        "y": y,
        "loss": loss,
        "matching": matching,
        "block": "a",
        "operator": operator,
        "spectrum": spectrum,
        "q": 0.5,
        "blocks": blocks,
        "name": "a",
        "apply": lambda p, z: z @ p,
        "mv": lambda v: v,
        "rmv": None,
        "size": 3,
        "in_size": 3,
        "out_size": 3,
        "learning_rate": 0.1,
        "optimizer": optax.sgd(0.1),
        "z": x,
        "fn": lambda p, x: lh.mark(x @ p["a"], "a") @ p["b"],
    }
    return given


GIVEN = setting()
WORKS = {
    ("mark", "z"),  # any pytree passes through
    ("symmetric_operator", "mv"),
    ("linear_map", "rmv"),
    ("Block", "apply"),
    ("chain_from_function", "params"),
    ("chain_from_function", "x"),
}
"""Where absurd values are meant, are noticed at the first product, or meet the user's own function first."""
NAMES = [name for name in vars(lh) if not name.startswith("_") and callable(getattr(lh, name)) and name not in LEFT_OUT]


def required(name):
    """The parameters that must be given, by position."""
    return [
        p.name
        for p in inspect.signature(getattr(lh, name)).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def test_the_walk_knows_every_public_name():
    assert set(vars(lh)) >= LEFT_OUT
    for name in NAMES:
        assert set(required(name)) <= set(GIVEN), name


def outcome(name, arguments):
    """None where it works; else the error."""
    try:
        getattr(lh, name)(*arguments)
    except Exception as error:
        return error
    return None


@pytest.mark.relaxed
@pytest.mark.parametrize("name", NAMES)
def test_absurd_values_are_refused_by_the_name_of_the_parameter(name):
    parameters = required(name)
    wrong = []
    for i, parameter in enumerate(parameters):
        for kind, value in ABSURD.items():
            arguments = [GIVEN[p] for p in parameters]
            arguments[i] = value
            error = outcome(name, arguments)
            if error is None or (name, parameter) in WORKS:
                continue
            if not isinstance(error, TypeError | ValueError | KeyError) or "`" not in str(error):
                wrong.append(f"{parameter}={kind}: {type(error).__name__}: {str(error)[:80]}")
    assert not wrong, "\n".join(wrong)


def test_sentences_tell_what_to_pass():
    operator, matching = GIVEN["operator"], GIVEN["matching"]
    told = {
        "`operator` must be an operator, as `lh.local_hessian`": lambda: lh.spectrum(jnp.eye(3)),
        "`operator` must be": lambda: lh.trace(3),
        "`method` must be a method, as `lh.Lanczos()`, or None": lambda: lh.spectrum(operator, "lanczos"),
        "`method` must be a method, as `lh.Dense()`": lambda: lh.spectrum(operator, lh.Dense),
        "`key` must be a random key, as `jax.random.key(0)`, got 3": lambda: lh.spectrum(operator, key=3),
        "`chain` must be a chain": lambda: lh.back_match(GIVEN["params"], GIVEN["chain"], *[GIVEN[k] for k in "xy"], 0),
        "`matching` must be what `lh.back_match` returns, got None": lambda: lh.local_hessian(None, "a"),
        "`spectrum` must be a spectrum from `lh.spectrum`, got an array": lambda: lh.condition_number(jnp.ones(3)),
        "`blocks` must be a list of blocks": lambda: lh.Chain([1]),
        "`name` must be the name of a block, got 3": lambda: lh.Block(3, lambda p, z: z),
    }
    for sentence, call in told.items():
        with pytest.raises(TypeError) as raised:
            call()
        assert sentence in str(raised.value)
    assert matching is GIVEN["matching"]


def test_checks_hold_under_transformations():
    spectrum = jax.jit(lambda op: lh.spectrum(op, lh.Dense()))(GIVEN["operator"])
    np.testing.assert_allclose(spectrum.eigenvalues, GIVEN["spectrum"].eigenvalues, atol=1e-5)
