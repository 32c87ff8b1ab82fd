"""First calls in a fresh process: seconds and programs, and what a call takes with nothing new.

Without a compilation cache, and in a second process with the cache that a first one filled:

    taskset -c 0 python benchmarks/first_calls.py [--calls back_match propagate ...] [--cases ...]

`small` has three dense layers, `lambdas` 49 equal blocks with a function each; the others are of the zoo. `compiled` is
the top of the second block's H_W by 200 products of Golub-Kahan inside `jax.jit`: over a convolution, of a VGG.
`propagate` is a step by Levenberg-Marquardt, and nothing of it is in a `jax.jit` of the caller's. `figures` are traces
by four methods, norm, diagonal, density and top of the second block's H_W and the scalars of all blocks; `last` is the
last block's H_W decomposed inside `jax.jit`. Of all calls `back_match` is a part.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy

import localhessian as lh
from localhessian.lab import zoo

CASES = {
    "back_match": ("small", "lambdas", "vgg13-bn/4", "gpt"),
    "analyze": ("small", "vgg13-bn/4", "gpt"),
    "check_identities": ("small", "gpt"),
    "compiled": ("small", "vgg13-bn/4"),
    "propagate": ("small", "lambdas"),
    "figures": ("small",),
    "last": ("small",),
}
EVERYTHING = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def by_hand(layers: int) -> tuple:
    """Equal layers of 16 with a function each, then a head of 3."""
    (chain, params), random = zoo.dense_network((*[16] * (layers + 1), 3), jax.random.key(0)), np.random.default_rng(0)
    blocks = [lh.Block(block.name, lambda p, z, apply=block.apply: apply(p, z)) for block in chain.blocks]
    x, y = jnp.asarray(random.normal(size=(32, 16)), jnp.float32), jnp.asarray(random.integers(0, 3, 32))
    return lh.Chain(blocks), params, x, y, cross_entropy, None


def problem(name: str) -> tuple:
    if name == "small":
        return by_hand(2)
    if name == "lambdas":
        return by_hand(49)
    case = zoo.case(name)
    return case.cut.chain, case.cut.params, case.x, case.y, case.loss, case.cut.context


def inside(method, block: int) -> Callable[..., jax.Array]:
    """The top of a block's H_W, compiled whole."""

    def top(chain: lh.Chain, params, x, y, loss, context) -> jax.Array:
        @jax.jit
        def run(params, x, y, context):
            matching = lh.back_match(chain, params, x, y, loss, context)
            return lh.spectrum(lh.local_hessian(matching, chain.names[block]), method).lambda_max

        return _KEPT.setdefault((chain, loss), run)(params, x, y, context)

    return top


def figures(*case) -> dict:
    """One of each kind."""
    matching = lh.back_match(*case)
    H = lh.local_hessian(matching, matching.chain.names[1])
    methods = lh.Hutchinson(16), lh.HutchPlusPlus(15), lh.XTrace(16), lh.Structured()
    traces = [lh.trace(H, method).value for method in methods]
    others = [figure(H, methods[0]).value for figure in (lh.frobenius_norm, lh.range_mean, lh.diagonal)]
    found = lh.spectrum(H, lh.Lanczos(max_matvecs=20, which="largest", k=1))
    of_all = found.lambda_max, lh.condition_number(found), lh.spectral_density(H), lh.local_scalars(matching)
    return {"traces": traces, "others": others, "of all": of_all}


def step(chain: lh.Chain, params, x, y, loss, context) -> dict:
    """Of back-matching propagation."""
    return lh.propagate(chain, params, x, y, loss, lh.LevenbergMarquardt(), context=context)[0]


_KEPT: dict = {}
FUNCTIONS = {
    "back_match": lh.back_match,
    "analyze": lh.analyze,
    "check_identities": lh.check_identities,
    "compiled": inside(lh.GolubKahan(which="largest", k=1, max_matvecs=200), 1),
    "propagate": step,
    "figures": figures,
    "last": inside(lh.Dense(), -1),
}


def measure(what: str, name: str) -> None:
    seconds: list[float] = []

    def listen(event: str, duration: float, **details) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    chain, params, *rest = jax.block_until_ready(problem(name))
    jax.monitoring.register_event_duration_secs_listener(listen)

    def call(params) -> float:
        begin = time.perf_counter()
        found = FUNCTIONS[what](chain, params, *rest)
        if isinstance(found, lh.BackMatching | jax.Array | dict):
            jax.block_until_ready(found)
        return time.perf_counter() - begin

    first, programs, compiling = call(params), len(seconds), sum(seconds)
    others = [jax.tree.map(lambda leaf, i=i: (1 + i / 1000) * leaf, params) for i in range(3)]
    again = min(call(others[i % 3]) for i in range(20 if what == "back_match" else 2))
    print(f"first {first:6.2f} s, {programs:3d} programs ({compiling:5.2f} s)   again {again:8.4f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--cases", nargs="*", help="default: some for each call")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(*options.only)
        return
    plain = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    for call in options.calls:
        for name in options.cases or CASES[call]:
            with tempfile.TemporaryDirectory() as folder:
                cached = plain | EVERYTHING | {"JAX_COMPILATION_CACHE_DIR": folder}
                for what, environment in (("no cache", plain), ("", cached), ("its cache", cached)):
                    command = [sys.executable, __file__, "--only", call, name]
                    result = subprocess.run(command, env=environment, check=True, text=True, capture_output=True)
                    if what:
                        print(f"{call:16s} {name:12s} {what:10s} {result.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
