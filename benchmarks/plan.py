"""Predicted against measured seconds of every local Hessian: `python benchmarks/plan.py [CASE ..]`.

A row is planned, taken once so that its programs are compiled, and taken again by the clock, or in seconds of the
processor where these are fewer, so that other work makes less of a difference. The ratio is predicted over measured;
rows of less than 20 ms are counted apart, because the interpreter is what takes their time.
"""

import sys

import jax
import numpy as np
from flax import nnx

import localhessian as lh
from localhessian._clock import timed_call
from localhessian.analysis._asked import chosen, jobs_of, missing
from localhessian.analysis._route import free_bytes, route, taken
from localhessian.lab.zoo import case, digits_network, mlp, vit
from localhessian.network import SIDES

SHORT = 0.02
"""Seconds."""
DIGITS = {
    "plain": ("plain", 5, 12),
    "batchnorm": ("batchnorm", 5, 12),
    "skip": ("skip", 5, 12),
    "wide": ("skip", 3, 40),
}
"""Kind, depth and channels."""
OTHERS = {
    "narrow mlp": (lambda: mlp((784, 300, 100, 10), activation="relu", rngs=nnx.Rngs(0)), (128, 784)),
    "wide mlp": (lambda: mlp((784, 1024, 1024, 10), norm="batch", rngs=nnx.Rngs(0)), (64, 784)),
    "small vit": (lambda: vit(layers=2, dim=64, rngs=nnx.Rngs(0)), (16, 32, 32, 3)),
}
"""Networks of other widths than those by which heuristics were chosen: the builder, and the shape of a batch."""


def rows(chain, params, x, y, loss, context):
    """(block, side, route, predicted, measured) of every row."""
    matching = lh.back_match(chain, params, x, y, loss, context)
    samples, key = chosen(None, 16, matching.samples), jax.random.key(0)
    for job in jobs_of(chain, None, tuple(SIDES), "gauss_newton"):
        kind = SIDES[job[1]]
        if missing(matching, job[0], kind, asked=False):
            continue
        alone = samples if kind.per_sample and not bool(matching.coupled[job[0]]) else None
        found = route(matching, job, alone, None, free_bytes())
        if found.method is None:
            continue
        work = lambda found=found: jax.block_until_ready(taken(found, matching, key).spectrum.eigenvalues)
        work()
        yield job[0], job[1], found.words, found.cost.seconds + found.searched, timed_call(work)[1]


def networks(names):
    """(name, arguments of `lh.analyze`)."""
    for name in names:
        if name in DIGITS:
            kind, depth, width = DIGITS[name]
            chain, params = digits_network(kind, jax.random.key(0), depth=depth, width=width)
            x = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
            loss = case("mlp").loss
            yield name, (chain, params, x, np.arange(16) % 10, loss, None)
        elif name in OTHERS:
            build, shape = OTHERS[name]
            x = jax.random.normal(jax.random.key(1), shape)
            chain, params, context = lh.chain_from_nnx(build(), x, at="layers.*")
            yield name, (chain, params, x, np.arange(shape[0]) % 10, case("mlp").loss, context)
        else:
            one = case(name)
            yield name, (one.cut.chain, one.cut.params, one.x, one.y, one.loss, one.cut.context)


def main(names):
    """Print a line for each row that is off by more than 2, and the share that is not."""
    total, near = 0, 0
    for name, arguments in networks(names):
        ratios, short = [], 0
        for block, wrt, words, predicted, measured in rows(*arguments):
            if max(predicted, measured) < SHORT:
                short += 1
                continue
            ratios.append(predicted / measured)
            if not 0.5 <= ratios[-1] <= 2:
                print(f"  {block:24} {wrt:7} {words:18} {predicted:8.3f} s {measured:8.3f} s   {ratios[-1]:.2f}")
        inside = sum(0.5 <= ratio <= 2 for ratio in ratios)
        total, near = total + len(ratios), near + inside
        print(
            f"{name}: {inside} of {len(ratios)} rows within a factor of 2; {short} below {1e3 * SHORT:.0f} ms",
            flush=True,
        )
    print(f"all: {near} of {total}")


if __name__ == "__main__":
    main(sys.argv[1:] or [*DIGITS, "mlp", *OTHERS, "vgg13-bn/4", "resnet20", "gpt", "vit"])
