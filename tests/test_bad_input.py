"""Every parameter of every public name, given the same absurd values: it works as meant, or a sentence names it."""

import functools
import inspect
import linecache
import re
import traceback
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import localhessian as lh
from localhessian.network import TracedChain

pytestmark = pytest.mark.once

ROOT = str(Path(lh.__file__).parent)
ABSURD = {
    "None": None,
    "number": 3,
    "negative": -1,
    "fraction": 1.5,
    "NaN": float("nan"),
    "inf": float("inf"),
    "bool": True,
    "text": "text",
    "list": [1, 2],
    "empty": [],
    "dict": {"q": 1},
    "object": object(),
    "array": jnp.ones((3, 2)),
    "ndarray": np.ones((3, 2)),
    "class": lh.Lanczos,
    "instance": lh.Lanczos(),
    "function": len,
    "folder": Path("folder"),
    "bytes": b"x",
}
ANY = " ".join(ABSURD)
ARRAYS = "None number negative fraction NaN inf bool list empty dict array ndarray"
LEFT_OUT = {
    # Data: made by the library, not by hand; their methods that take something are walked.
    *("Audit", "BackMatching", "BlockInfo", "ConditionNumber", "Cut", "Density", "Explanation", "Figures"),
    *("IdentityCheck", "Interval", "LinearMap", "LocalScalars", "Measurement", "Operator", "Plan", "PlannedRow"),
    *("PropagateInfo", "QuadratureEstimate", "Row", "Spectrum"),
    *("Spread", "StreamMatching", "Summary", "SymmetricOperator", "TraceEstimate", "Status"),
    # Errors are raised, not called.
    *("CutError", "IdentityError", "SpectrumError", "SpectrumInterrupt"),
}
PROTOCOL = {"run", "attempt", "compute", "require", "decompose", "init", "solve", "refused", "with_meta"}
PROTOCOL |= {"product", "transpose_product"}
"""Methods that the library calls on methods, solvers and operators, and one that takes anything by name."""
MEANT = {
    # Numbers with a range of their own.
    **dict.fromkeys(("GolubKahan.rtol", "Lanczos.rtol", "decay", "down", "relative_error"), ""),
    **dict.fromkeys(("rate", "sigmas"), "number fraction"),
    "tolerance": "None number fraction",
    "weights": "list",
    "max_seconds": "None number fraction inf",
    "learning_rate": "number fraction function",
    "momentum": "None number fraction",
    "refresh": "None number",
    "samples_per_block": "number",
    **{"batch_size": "None number", "batches": "None number", "Stream.batches": "", "per_batch": "bool"},
    "limits": "None list",
    "trace": "number",
    "frobenius": "number fraction",
    **dict.fromkeys(("size", "in_size", "out_size"), "number"),
    **dict.fromkeys(("Dense.max_size", "Structured.max_size"), "number inf"),
    **dict.fromkeys(("max_bytes", "max_operations"), "number fraction inf"),
    **dict.fromkeys(("scale_amended_sgd.samples", "scale_by_local_hessian.samples"), "None number"),
    **dict.fromkeys(("scale_amended_sgd.probes", "scale_by_local_hessian.probes"), "None number"),
    **dict.fromkeys(("HutchPlusPlus.probes", "XTrace.probes"), ""),  # 3 are too few
    **dict.fromkeys(("analyze.samples", "measure.samples", "plan.samples"), "None number negative list"),
    # Functions; one of a single argument is meant by nobody who is to call it with two.
    **dict.fromkeys(("mv", "rmv", "per_sample"), "None function"),
    **dict.fromkeys(("symmetric_operator.mv", "linear_map.mv", "Block.apply"), "function"),
    # Methods, names and paths.
    **dict.fromkeys(("spectrum.method", "analyze.method", "measure.method", "plan.method"), "None instance"),
    "static_axes": "empty",
    "progress": "None bool",
    **dict.fromkeys(("mark.name", "Block.name"), "text"),
    "at": "None empty",
    "Report.plot.path": "None text folder",
    "Report.html.path": "text",
    "Report.save.path": "text folder",
    **dict.fromkeys(("Report.spectra", "Report.meta"), "dict"),
    **{"Probe.budget": "None", "Probe.figures": "", "Probe.path": "None text"},
    # Any pytree of arrays.
    "context": ARRAYS,
    "mark.z": "number negative fraction NaN inf bool list dict array ndarray",
    **dict.fromkeys(("TracedChain.context_for.context", "TracedChain.forward.context"), "None empty"),
    **dict.fromkeys(("TracedChain.describe.context", "TracedChain.next_context.context"), "None empty"),
    **dict.fromkeys(("chain_from_function.context", "chain_from_equinox.context"), "None"),
    **dict.fromkeys(("scale_by_local_hessian.update.params", "scale_by_local_hessian.update.x"), ""),
    "TracedChain.has_layout_of_model.tree": ANY,  # the answer is False
    # A chain written by hand uses none of these: what comes in goes out.
    **dict.fromkeys(("Chain.context_for.x", "Chain.context_for.context", "Chain.context_for.params"), ANY),
    **dict.fromkeys(("Chain.sum_tied.of_blocks", "Chain.check_tied.params", "Chain.forward.context"), ANY),
}
"""What works, besides what the default tells (None, a flag, a count, a number): by parameter, or by its place."""
EXCUSED = {
    # The model's own function meets them first, and says what it lacks.
    **dict.fromkeys(("Chain.forward.x", "Chain.describe.x"), ARRAYS),
    **dict.fromkeys(("Chain.forward.params", "Chain.describe.params"), "empty"),
    **dict.fromkeys(
        ("TracedChain.context_for.x", "TracedChain.forward.x", "TracedChain.next_context.x"), "array ndarray"
    ),
    "TracedChain.describe.x": "array ndarray",
    **dict.fromkeys(("chain_from_function.x", "chain_from_equinox.x"), "array ndarray"),
    **dict.fromkeys(("chain_from_linen.x", "chain_from_nnx.x"), "array ndarray"),
    "chain_from_function.params": "None empty fraction NaN inf array ndarray",
    # A function of other arguments is called by some routes only, and Python says what it lacks.
    **dict.fromkeys(
        ("spectrum.progress", "analyze.progress", "plan.progress", "check_identities.progress", "sweep.progress"),
        "function",
    ),
    # The sentence names the class, or the file itself.
    "Chain.blocks": "empty",
    "Report.html.path": "folder",
    "Report.load.path": "text folder",
}
"""What is refused in other words, with the reason."""


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.b(jnp.tanh(self.a(x)))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2, name="b")(jnp.tanh(linen.Dense(3, name="a")(x)))


class Equinox(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear

    def __call__(self, x):
        return self.b(jnp.tanh(self.a(x)))


@functools.cache
@jax.numpy_dtype_promotion("standard")  # for flax in float64
def setting():
    """A good value for each parameter that must be given: by its name, or by the name of the function too."""
    blocks = [lh.Block("a", lambda p, z: jnp.tanh(z @ p)), lh.Block("b", lambda p, z: z @ p)]
    chain = lh.Chain(blocks)
    params = {"a": jnp.eye(3), "b": jnp.ones((3, 2))}
    x, y = jnp.sin(jnp.arange(12.0)).reshape(4, 3), jnp.array([0, 1, 1, 0])
    loss = optax.softmax_cross_entropy_with_integer_labels
    matching = lh.back_match(chain, params, x, y, loss)
    operator = lh.local_hessian(matching, "a")
    fn = lambda p, x: lh.mark(x @ p["a"], "a") @ p["b"]
    cut = lh.chain_from_function(fn, params, x)
    transform = lh.scale_by_local_hessian(chain, loss)
    report = lh.analyze(chain, params, x, y, loss, wrt="params", blocks="b")
    layer = eqx.nn.Linear(3, 3, key=jax.random.key(0))
    return {
        **{"chain": chain, "params": params, "x": x, "y": y, "loss": loss, "blocks": blocks, "fn": fn},
        **{"matching": matching, "operator": operator, "spectrum": lh.spectrum(operator, lh.Dense(), vectors=1)},
        **{"block": "a", "name": "a", "apply": lambda p, z: z @ p, "q": 0.5, "z": x},
        **{"case": lambda scale: scale + 1, "axes": {"scale": [1.0, 2.0]}},
        **{"operators": [operator, operator], "weights": [0.5, 0.5]},
        **{"batches": [(x, y)], "found": [report, report], "analyze.batches": 2},
        **{"mv": lambda v: v, "rmv": None, "size": 3, "in_size": 3, "out_size": 3},
        **{"learning_rate": 0.1, "optimizer": optax.sgd(0.1)},
        **{"v": jnp.ones(9), "u": jnp.ones(operator.factor.out_size)},
        **{"rows": report.rows, "spectra": report.spectra, "meta": report.meta, "path": Path("report.npz")},
        **{"chain_from_nnx.model": Nnx(nnx.Rngs(0)), "chain_from_equinox.model": Equinox(layer, layer)},
        **{"module": Linen(), "variables": Linen().init(jax.random.key(0), x)},
        **{"of_blocks": cut.params, "block_params": cut.params, "model_params": params, "tree": params},
        **{f"TracedChain.{name}.params": cut.params for name in ("forward", "check_tied", "next_context")},
        "check_identities.blocks": "b",
        **{"updates": matching.gradients, "state": transform.init(params)},
        "instances": {
            "Chain": chain,
            "TracedChain": cut.chain,
            "Report": report,
            "Dense": lh.Dense(),
            "Structured": lh.Structured(),
            "SymmetricOperator": operator,
            "LinearMap": operator.factor,
            "Spectrum": lh.spectrum(operator, lh.Dense()),
            "Density": lh.spectral_density(operator),
            "QuadratureEstimate": lh.spectral_density(operator).density,
        },
        "transform": transform,
    }


TRIED = 1
"""Of the kinds that work, to be seen working: each may be a program of its own."""
KINDS = [lh.Chain, TracedChain, lh.Report, lh.Dense, lh.Structured, lh.SymmetricOperator, lh.LinearMap, lh.Spectrum]
KINDS = {kind.__name__: kind for kind in (*KINDS, lh.Density, lh.QuadratureEstimate)}
"""Of the instances whose methods are walked."""


def methods(kind):
    """The names of those that users call with something."""
    for name in dir(kind):
        method = inspect.getattr_static(kind, name)
        if isinstance(method, classmethod) or inspect.isfunction(method):
            takes = parameters(getattr(method, "__func__", method))[1:]  # itself apart
            if takes and not name.startswith("_") and name not in PROTOCOL:
                yield name


def walked():
    """Everything that is called: functions and constructors, methods, and what an optax transformation consists of."""
    public = (name for name, value in vars(lh).items() if not name.startswith("_") and callable(value))
    yield from (name for name in public if name not in LEFT_OUT and parameters(getattr(lh, name)))
    yield from (f"{name}.{method}" for name, kind in KINDS.items() for method in methods(kind))
    yield from ("scale_by_local_hessian.init", "scale_by_local_hessian.update")


def called(name):
    """The function of this name."""
    owner, _, method = name.partition(".")
    if not method:
        return getattr(lh, owner)
    return getattr(setting()["transform"] if owner == "scale_by_local_hessian" else instances()[owner], method)


def instances():
    return setting()["instances"]


def parameters(function):
    """Those with a name of their own."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in inspect.signature(function).parameters.values() if p.kind not in variadic]


def good(name, parameter):
    return setting().get(f"{name}.{parameter.name}", setting().get(parameter.name, parameter.default))


WALKED = list(walked())
ALWAYS = {"scale_by_local_hessian.update": ("params", "x", "y"), "check_identities": ("blocks",)}
"""Optional by their default, and needed all the same, or given to save time."""


def meant(name, parameter):
    """The kinds of absurd values that are none for this parameter."""
    default = parameter.default
    if default is None:
        told = "None"
    elif isinstance(default, bool):
        told = "bool"
    else:
        told = {int: "number", float: "number fraction"}.get(type(default), "")
    return MEANT.get(f"{name}.{parameter.name}", MEANT.get(parameter.name, told)).split()


def outcome(name, parameter, value):
    """None where it works; else the error."""
    by_position, by_name = [], {}
    for p in parameters(called(name)):
        if p.name != parameter.name and p.default is not p.empty and p.name not in ALWAYS.get(name, ()):
            continue
        given = value if p.name == parameter.name else good(name, p)
        if p.kind is p.POSITIONAL_ONLY:
            by_position.append(given)
        else:
            by_name[p.name] = given
    try:
        called(name)(*by_position, **by_name)
    except (Exception, SystemExit) as error:
        return error
    return None


def on_purpose(error):
    """Whether the last frame is a `raise` of our own."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(ROOT) and linecache.getline(last.filename, last.lineno).strip().startswith("raise")


def is_clear(error, parameter, value):
    names = re.search(rf"`[^`]*\b{parameter}\b[^`]*`", str(error))
    is_name = parameter == "name" or isinstance(value, str | dict | list)
    unknown = isinstance(error, KeyError) and is_name and "there is no block `" in str(error)
    return on_purpose(error) and (unknown or (names and isinstance(error, TypeError | ValueError)))


def test_the_walk_knows_every_public_name():
    assert set(vars(lh)) >= LEFT_OUT
    assert {name: set(methods(type(one))) for name, one in instances().items()} == {
        name: set(methods(kind)) for name, kind in KINDS.items()
    }
    for name in WALKED:
        for p in parameters(called(name)):
            assert p.default is not p.empty or good(name, p) is not p.empty, f"{name} needs a good `{p.name}`"
    known = {f"{name}.{p.name}" for name in WALKED for p in parameters(called(name))}
    plain = {place.rsplit(".", 1)[1] for place in known}
    assert known | plain >= set(MEANT) | set(EXCUSED), "a parameter is meant or excused that is no more"


@pytest.mark.relaxed
@pytest.mark.parametrize("name", WALKED)
def test_absurd_values_are_refused_by_the_name_of_the_parameter(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    instances()["Report"].save("report.npz")
    wrong, was_called = [], False
    for parameter in parameters(called(name)):
        place = f"{name}.{parameter.name}"
        works, excused = meant(name, parameter), EXCUSED.get(place, "").split()
        for kind, value in ABSURD.items():
            is_default = value is parameter.default
            if kind in excused or kind in works[TRIED:] or (is_default and was_called):
                continue
            was_called |= is_default
            error = outcome(name, parameter, value)
            if error is None and kind not in works:
                wrong.append(f"{parameter.name}={kind}: nothing is said")
            elif error is not None and (kind in works or not is_clear(error, parameter.name, value)):
                wrong.append(f"{parameter.name}={kind}: {type(error).__name__}: {str(error)[:90]}")
    assert not wrong, "\n".join(wrong)


def test_sentences_tell_what_to_pass():
    operator, matching = setting()["operator"], setting()["matching"]
    chain, params, x, y, loss = (setting()[name] for name in ("chain", "params", "x", "y", "loss"))
    told = {
        "`operator` must be an operator, as `lh.local_hessian`": lambda: lh.spectrum(jnp.eye(3)),
        "`operator` must be": lambda: lh.trace(3),
        "`method` must be a method, as `lh.Lanczos()`, or None": lambda: lh.spectrum(operator, "lanczos"),
        "`method` must be a method, as `lh.Dense()`": lambda: lh.spectrum(operator, lh.Dense),
        "`lh.XTrace(probes=32)`, `lh.Structured()` or None, got 'xtrace'": lambda: lh.trace(operator, "xtrace"),
        "`key` must be a random key, as `jax.random.key(0)`, got 3": lambda: lh.spectrum(operator, key=3),
        "`chain` must be a chain": lambda: lh.back_match(params, chain, x, y, 0),
        "got a `dict`; `params` is one: swap the two": lambda: lh.analyze(params, chain, x, y, loss),
        "`matching` must be what `lh.back_match` returns, got None": lambda: lh.local_hessian(None, "a"),
        "`spectrum` must be a spectrum from `lh.spectrum`, got an array": lambda: lh.condition_number(jnp.ones(3)),
        "`blocks` must be a list of blocks": lambda: lh.Chain([1]),
        "`name` must be the name of a block, got 3": lambda: lh.Block(3, lambda p, z: z),
    }
    for sentence, call in told.items():
        with pytest.raises(TypeError) as raised:
            call()
        assert sentence in str(raised.value)
    assert matching is setting()["matching"]


def test_checks_hold_under_transformations():
    spectrum = jax.jit(lambda op: lh.spectrum(op, lh.Dense()))(setting()["operator"])
    np.testing.assert_allclose(spectrum.eigenvalues, setting()["spectrum"].eigenvalues, atol=1e-5)


@pytest.mark.relaxed
def test_the_optax_update_looks_at_its_numbers_where_there_are_some():
    given = {name: setting()[name] for name in ("updates", "params", "x", "y")}
    state, update = setting()["state"], setting()["transform"].update
    step = lambda updates, params, x, y: update(updates, state, params, x=x, y=y)[0]
    for name in ("updates", "params", "x"):
        spoiled = given | {name: jax.tree.map(lambda leaf: leaf.at[0, 0].set(jnp.nan), given[name])}
        with pytest.raises(ValueError, match=f"`{name}` is not finite"):
            step(**spoiled)
        jax.eval_shape(step, **spoiled)  # traced, only shapes can be looked at
    fresh = lh.scale_by_local_hessian(setting()["chain"], setting()["loss"])
    with pytest.raises(ValueError, match="the loss is not finite"):
        fresh.update(given["updates"], state, given["params"], x=given["x"], y=given["y"] + 9)


@pytest.mark.relaxed
def test_states_of_another_solver_and_types_that_jax_does_not_have_are_refused():
    network = [setting()[name] for name in ("chain", "params", "x", "y", "loss")]
    with pytest.raises(ValueError, match="`state` holds for block `b` what another solver left"):
        lh.propagate(*network, lh.ScaledGradient(), state={"a": ((), ()), "b": ((), ())})
    with pytest.raises(ValueError, match=r"`state` must be .*with a pair for each block \(a, b\)"):
        lh.propagate(*network, state={"a": ((), ())})
    with jax.enable_x64(False), pytest.raises(ValueError, match="`dtype` is float64, and JAX has 64 bits disabled"):
        lh.symmetric_operator(lambda v: v, 3, dtype=jnp.float64)


def test_keys_of_one_generator_are_keys_typed_or_legacy():
    for key in (jax.random.key(1), jax.random.PRNGKey(1), np.asarray(jax.random.PRNGKey(1))):
        assert lh.trace(setting()["operator"], lh.Hutchinson(probes=2), key=key).status == 0
    for wrong in (jax.random.split(jax.random.key(1)), np.zeros(3, np.uint32), np.zeros(2, np.int32)):
        with pytest.raises(TypeError, match="`key` must be a random key"):
            lh.trace(setting()["operator"], lh.Hutchinson(probes=2), key=wrong)
