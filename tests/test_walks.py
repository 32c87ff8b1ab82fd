"""Traced programs walked, run by rules, rewritten, told apart: alike through every kind of call, loop and branch."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from localhessian._programs import (
    bind,
    entered,
    equations,
    evaluate,
    has_custom_rule,
    live,
    primitives,
    rewritten,
    run,
    run_rewritten,
    traced,
    unrolled,
)
from localhessian._programs._text import fingerprint

pytestmark = pytest.mark.once

X = np.linspace(0.1, 1.3, 4)


def custom_jvp(f, factor=7):
    """With a derivative that is not the function's, so that it shows whether it is kept."""
    held = jax.custom_jvp(f)
    held.defjvp(lambda x, v: (f(x[0]), factor * v[0]))
    return held


def custom_vjp(f, factor=7):
    held = jax.custom_vjp(f)
    held.defvjp(lambda x: (f(x), None), lambda _, u: (factor * u,))
    return held


CALLS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "jit in jit": lambda f: jax.jit(lambda x: 1.0 * jax.jit(f)(x)),
    "checkpoint": jax.checkpoint,
    "custom_jvp": custom_jvp,
    "custom_vjp": custom_vjp,
}
OTHERS = {
    "scan": lambda f: lambda x: lax.scan(lambda carry, row: (carry, f(row)), 0, x)[1],
    "while": lambda f: lambda x: lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, f(s[1])), (0, x))[1],
    "cond": lambda f: lambda x: lax.cond(x[0] > 0, f, lambda x: x, x),
    "switch in scan": lambda f: (
        lambda x: lax.scan(lambda carry, row: (carry, lax.switch(1, [lambda r: r, f, lambda r: -r], row)), 0, x)[1]
    ),
}
KINDS = CALLS | OTHERS


def program(kind, f=jnp.sin):
    return traced(KINDS[kind](f), jnp.asarray(X))[0]


def entering(eqn, values):
    inner = entered(eqn)
    return bind(eqn, values) if inner is None else evaluate(inner, values, entering)


@pytest.mark.parametrize("kind", KINDS)
def test_the_walk_finds_an_equation_inside_of_anything(kind):
    assert [eqn.primitive for eqn in equations(program(kind))].count(primitives.sin_p) == 1
    assert has_custom_rule(program(kind)) == kind.startswith("custom")


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_by_any_rule_gives_the_same_numbers(kind, tol):
    for rule in (bind, entering):
        np.testing.assert_allclose(evaluate(program(kind), [jnp.asarray(X)], rule)[0], np.sin(X), rtol=tol.identity)


@pytest.mark.parametrize("kind", KINDS)
def test_calls_are_entered_and_nothing_else_is(kind):
    outermost = program(kind).jaxpr.eqns
    assert any(entered(eqn) is not None for eqn in outermost) == (kind in CALLS and kind != "plain")
    if kind.startswith("custom"):
        assert all(entered(eqn, custom=False) is None for eqn in outermost)


@pytest.mark.parametrize("kind", KINDS)
def test_rewriting_reaches_inside_of_anything(kind, tol):
    instead = lambda eqn, turned: jnp.cos if eqn.primitive is primitives.sin_p else None
    np.testing.assert_allclose(
        run_rewritten(KINDS[kind](jnp.sin), instead, jnp.asarray(X)), np.cos(X), rtol=tol.identity
    )
    leave = lambda eqn, turned: None
    np.testing.assert_array_equal(
        run_rewritten(KINDS[kind](jnp.sin), leave, jnp.asarray(X)), KINDS[kind](jnp.sin)(jnp.asarray(X))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rewriting_makes_no_copies(kind):
    """A program of which nothing is replaced is itself; what equations share they share afterwards."""
    one = program(kind)
    assert rewritten(one, lambda eqn, turned: None) is one
    f = jax.jit(KINDS[kind](jnp.sin))
    twice = traced(lambda x: [f(x), f(2 * x)], jnp.asarray(X))[0]
    after = rewritten(twice, lambda eqn, turned: jnp.cos if eqn.primitive is primitives.sin_p else None)
    first, second = (eqn.params["jaxpr"] for eqn in after.jaxpr.eqns if eqn.primitive is primitives.jit_p)
    assert first is second
    assert not any(eqn.primitive is primitives.sin_p for eqn in equations(after))


@pytest.mark.parametrize("kind", ["custom_jvp", "custom_vjp"])
def test_rules_of_differentiation_outlive_evaluation_and_rewriting(kind):
    """The rule says 7, the function cos(x): entering a call loses it, running or rewriting the program does not."""
    f, x = KINDS[kind](jnp.sin), jnp.asarray(X)
    for other in (
        lambda x: evaluate(program(kind), [x])[0],
        lambda x: run(program(kind), x)[0],
        lambda x: run_rewritten(f, lambda eqn, turned: None, x),
    ):
        np.testing.assert_array_equal(jax.grad(lambda x, other=other: other(x).sum())(x), np.full(4, 7))
    entered_gradient = jax.grad(lambda x: evaluate(program(kind), [x], entering)[0].sum())(x)
    np.testing.assert_allclose(entered_gradient, np.cos(X), rtol=1e-6)


def test_a_scan_is_unrolled(tol):
    """With what stays, what is carried and what is taken apart; also backwards."""
    rows = jnp.asarray(np.outer([1, 2, 3], X))
    for reverse in (False, True):
        scan = lambda x, rows, r=reverse: lax.scan(lambda c, row: (c + row, x * c), jnp.zeros(4), rows, reverse=r)
        one, _ = traced(scan, jnp.asarray(X), rows)
        rule = lambda eqn, values: (
            unrolled(eqn, values, evaluate) if eqn.primitive is primitives.scan_p else bind(eqn, values)
        )
        wanted = scan(jnp.asarray(X), rows)
        for got, want in zip(evaluate(one, [jnp.asarray(X), rows], rule), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=tol.identity)


def test_a_rule_may_tell_what_later_equations_read():
    """What is read after the sine is not x, but zero."""
    one, _ = traced(lambda x: jnp.sin(x) + x, jnp.asarray(X))

    def rule(eqn, values):
        if eqn.primitive is primitives.sin_p:
            return {eqn.outvars[0]: jnp.cos(values[0]), eqn.invars[0]: jnp.zeros(4)}
        return bind(eqn, values)

    np.testing.assert_allclose(evaluate(one, [jnp.asarray(X)], rule)[0], np.cos(X), rtol=1e-6)


def test_values_of_another_kind_and_constants():
    """How often the input enters each result; a constant counts for nothing."""
    big = np.arange(4.0)
    one, _ = traced(jax.jit(lambda x: x * x + 2.0 * x + jnp.asarray(big)), jnp.asarray(X))

    def count(eqn, values):
        inner = entered(eqn)
        if inner is not None:
            return evaluate(inner, values, count, constant=lambda _: 0)
        return [sum(values)] * len(eqn.outvars)

    assert evaluate(one, [1], count, constant=lambda _: 0) == [3]


def test_a_value_is_dropped_after_its_last_use():
    class Value:
        pass

    seen = []

    def rule(eqn, values):
        alive = [made() is not None for made in seen]
        value = Value()
        seen.append(weakref.ref(value))
        assert sum(alive) <= len(eqn.invars)
        return [value]

    one, _ = traced(lambda x: jnp.sin(jnp.cos(jnp.tanh(jnp.exp(x)))), jnp.asarray(X))
    evaluate(one, [Value()], rule)
    assert len(seen) == 4


def test_only_what_a_result_depends_on_lives(tol):
    one, _ = traced(lambda x: [jnp.sin(x), jnp.exp(x)][0], jnp.asarray(X))
    assert [eqn.primitive.name for eqn in live(one).jaxpr.eqns] == ["sin"]
    np.testing.assert_allclose(run(live(one), jnp.asarray(X))[0], np.sin(X), rtol=tol.identity)


def text(f):
    return fingerprint(traced(f, jnp.asarray(X))[0], ())


@pytest.mark.parametrize(
    ("f", "g", "alike"),
    [
        (lambda a: jnp.sin(a) + 1, lambda b: jnp.sin(b) + 1, True),
        (lambda x: 1.0000001 * x, lambda x: 1.0000002 * x, False),
        (lambda x: x + np.arange(4.0), lambda x: x + np.arange(4.0), True),
        (lambda x: x + np.arange(4.0), lambda x: x + np.array([0, 1, 2, 3.0000002]), False),
        (custom_jvp(jnp.sin), custom_jvp(jnp.sin), True),
        (custom_jvp(jnp.sin), jax.jit(jnp.sin), False),
        (OTHERS["scan"](jnp.sin), OTHERS["scan"](jnp.cos), False),
        (lambda x: lax.cond(x[0] > 0, lambda x: 1.0000001 * x, jnp.sin, x),
         lambda x: lax.cond(x[0] > 0, lambda x: 1.0000002 * x, jnp.sin, x), False),
    ],
)  # fmt: skip
def test_programs_are_told_apart_to_the_last_bit(f, g, alike):
    assert (text(f) == text(g)) == alike


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("custom")])
@pytest.mark.parametrize("custom", [custom_jvp, custom_vjp])
def test_rules_of_differentiation_are_told_apart_inside_of_anything(kind, custom):
    """Where the whole has a derivative and where, as of a loop in reverse, it has none."""
    texts = [text(KINDS[kind](custom(jnp.sin, factor))) for factor in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_functions_of_the_host_are_told_apart():
    call = lambda host: lambda x: jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    assert text(call(np.sin)) != text(call(np.cos))
