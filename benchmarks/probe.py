"""What `lh.Probe` costs in a plain optax loop, and that the training is the same to the bit.

    python benchmarks/probe.py [--cases vgg13-bn/4 gpt] [--steps 1000] [--every 100] [--budget 0.05] [--figures cheap]

The same loop from the same parameters on the same batches without it, with it and without it again: seconds against the
mean of the two without, of the clock and of the processor. The first call (compilation) is told apart.
"""

import argparse
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import localhessian as lh
from localhessian.lab import zoo


class Run(NamedTuple):
    params: dict
    wall: float
    cpu: float


def train(case: zoo.Case, steps: int, probe: lh.Probe | None = None) -> Run:
    """SGD with momentum, one compiled step; the samples in another order in each of ten steps."""
    optimizer, random = optax.sgd(1e-2, momentum=0.9), np.random.default_rng(0)
    chain, params, context = case.cut
    state = optimizer.init(params)
    orders = [jnp.asarray(random.permutation(len(case.x))) for _ in range(10)]

    @jax.jit
    def step(params, state, x, y, context):
        objective = lambda params: case.loss(chain.forward(params, x, context)[-1], y).mean()
        updates, state = optimizer.update(jax.grad(objective)(params), state, params)
        return optax.apply_updates(params, updates), state

    wall = cpu = 0.0
    for i in range(steps):
        if i == 1:  # the step and the probe are compiled
            jax.block_until_ready(params)
            wall, cpu = time.perf_counter(), time.process_time()
        x, y = case.x[orders[i % 10]], case.y[orders[i % 10]]
        if probe is not None:
            probe(i, params, x, y, context)
        params, state = step(params, state, x, y, context)
    jax.block_until_ready(params)
    return Run(params, time.perf_counter() - wall, time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=["vgg13-bn/4", "gpt"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--figures", default="cheap")
    options = parser.parse_args()
    for name in options.cases:
        case = zoo.case(name)
        probe = lh.Probe(case.cut.chain, case.loss, options.every, options.budget, figures=options.figures)
        runs = [train(case, options.steps, one) for one in (None, probe, None)]
        history = probe.history
        wall, cpu = (
            2 * getattr(runs[1], clock) / (getattr(runs[0], clock) + getattr(runs[2], clock)) - 1
            for clock in ("wall", "cpu")
        )
        pairs = zip(*(jax.tree.leaves(run.params) for run in runs[:2]), strict=True)
        same = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
        times = history.lambda_max.notnull().sum("step")
        print(f"{name}, {jax.devices()[0].device_kind}: {1e3 * runs[0].wall / (options.steps - 1):.1f} ms a step")
        print(
            f"  with the probe {100 * wall:+.1f} % (processor {100 * cpu:+.1f} %), by itself "
            f"{100 * float(history.share[-1]):.1f} %; first call {probe.first_seconds:.1f} s"
        )
        print(
            f"  {history.sizes['step']} records, each Hessian {int(times.where(times > 0).min())} to "
            f"{int(times.max())} times; same parameters to the bit: {same}",
            flush=True,
        )


if __name__ == "__main__":
    main()
