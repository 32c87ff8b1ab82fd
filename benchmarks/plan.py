"""Predicted against measured seconds of every local Hessian: `python benchmarks/plan.py [CASE ..]`.

A row is planned, taken once so that its programs are compiled, and taken again by the clock. The ratio is predicted
over measured; rows of less than 20 ms are counted apart, because the interpreter is what takes their time.
"""

import sys
import time

import jax
import numpy as np

import localhessian as lh
from localhessian.analysis._asked import chosen, jobs_of, missing
from localhessian.analysis._route import free_bytes, route, taken
from localhessian.lab.zoo import case, digits_network
from localhessian.network import SIDES

SHORT = 0.02
"""Seconds."""


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
        taken(found, matching, key)
        started = time.perf_counter()
        jax.block_until_ready(taken(found, matching, key).spectrum.eigenvalues)
        yield job[0], job[1], found.words, found.cost.seconds + found.searched, time.perf_counter() - started


def networks(names):
    """(name, arguments of `lh.analyze`)."""
    for name in names:
        if name in ("plain", "batchnorm", "skip"):
            chain, params = digits_network(name, jax.random.key(0), depth=5, width=12)
            x = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
            loss = case("mlp").loss
            yield name, (chain, params, x, np.arange(16) % 10, loss, None)
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
        print(f"{name}: {inside} of {len(ratios)} rows within a factor of 2; {short} below {1e3 * SHORT:.0f} ms")
    print(f"all: {near} of {total}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["plain", "batchnorm", "skip", "mlp", "vgg13-bn/4", "resnet20", "gpt", "vit"])
