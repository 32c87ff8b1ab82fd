"""matfree's part, in JAX, on localhessian's blocks: its Lanczos compiled whole, with the linearization in the program.

It takes a fixed number of steps: each problem is told the fewest of STEPS that reach the residual, found beforehand.
"""

import json
import sys

import jax
import jax.numpy as jnp
from matfree import decomp, eig
from work import TOLERANCE, clock, megabytes

from localhessian.lab import zoo

STEPS = (4, 6, 8, 11, 16, 22, 32, 45, 64, 90, 128)


def problems(name: str, seed: int):
    """(name, function of (variables, the rest), variables, the rest, last, scale): H = scale * J^T S J."""
    case = zoo.case(name, seed=seed)
    chain, params, context = case.cut
    context = chain.context_for(case.x, context)
    activations = chain.forward(params, case.x, context)
    found = []
    for side in "Wz":
        for block, z in zip(chain.blocks, activations[:-1], strict=True):
            if side == "z" and not jnp.issubdtype(z.dtype, jnp.floating):
                continue
            last = block.name == chain.names[-1]
            scale = (1 / len(case.y) if side == "W" else 1.0) / (case.y.size // len(case.y) if last else 1)
            by_params = lambda w, z, block=block: block(w, z, context)
            by_input = lambda z, w, block=block: block(w, z, context)
            given = (by_params, params[block.name], z) if side == "W" else (by_input, z, params[block.name])
            found.append((f"{block.name} {side}", *given, last, scale))
    return found


def linearized(function, at, rest, last: bool):
    """v -> J^T S J v, S of the loss or I."""
    out, jvp = jax.linearize(lambda at: function(at, rest), at)
    transpose = jax.linear_transpose(jvp, at)
    p = jax.nn.softmax(out) if last else None

    def product(v):
        u = jvp(v)
        return transpose(p * u - p * jnp.sum(p * u, -1, keepdims=True) if last else u)[0]

    return product


def solver(function, last: bool, steps: int):
    """Compiled programs: the largest Ritz pair, and its true residual relative to the value."""
    lanczos = eig.eigh_partial(decomp.tridiag_sym(steps))

    @jax.jit
    def solve(at, rest, start):
        values, vectors = lanczos(linearized(function, at, rest, last), start)
        return values[-1], jax.tree.map(lambda leaf: leaf[-1], vectors)

    @jax.jit
    def residual(at, rest, value, vector):
        moved = linearized(function, at, rest, last)(vector)
        gaps = jax.tree.map(lambda a, b: jnp.sum((a - value * b) ** 2), moved, vector)
        return jnp.sqrt(sum(jax.tree.leaves(gaps))) / value

    return solve, residual


def main(case: str, seed: int) -> dict:
    imported = megabytes()
    chosen, tops, worst, products = {}, {}, 0.0, {"W": 0, "z": 0}
    items = problems(case, seed)
    for name, function, at, rest, last, scale in items:
        leaves, tree = jax.tree.flatten(at)
        keys = jax.random.split(jax.random.key(0), len(leaves))
        start = tree.unflatten(
            [jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
        )
        for steps in STEPS:
            solve, residual = solver(function, last, steps)
            value, vector = solve(at, rest, start)
            error = float(residual(at, rest, value, vector))
            if error <= TOLERANCE:
                break
        chosen[name], tops[name], worst = (solve, at, rest, start), float(value) * scale, max(worst, error)
        products[name[-1]] += steps
    jax.clear_caches()

    def run() -> dict[str, float]:
        seconds = {"W": 0.0, "z": 0.0}
        for name, (solve, at, rest, start) in chosen.items():
            begin = clock()
            jax.block_until_ready(solve(at, rest, start))
            seconds[name[-1]] += clock() - begin
        return seconds

    first, warm = run(), run()
    return {
        "setup": 0.0,
        "first": first,
        "warm": warm,
        "top": tops,
        "residual": worst,
        "products": products,
        "megabytes": megabytes() - imported,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[2], int(sys.argv[4]))))
