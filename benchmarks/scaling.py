"""How cost grows: seconds, memory and compilation against depth, width, batch and classes; and against one global run.

    taskset -c 0 python benchmarks/scaling.py [--axes depth width batch classes global] [--figure scaling.png]

The largest eigenvalue of H_W of every block by as many products each, of a dense network; each line is a process of its
own, so that its first call and its peak are its own. Seconds are of the processor. What theory says is a straight line:
in the depth, the square of the width, the batch, and the classes; equal blocks share programs, so that compilation is
constant in the depth.

`global`: all of these local spectra against one run of as many steps for the Gauss-Newton matrix of all parameters at
once, the same engine on the network as one block.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy

import localhessian as lh
from localhessian.lab import zoo

STEPS = 20
USUAL = {"depth": 6, "width": 256, "batch": 64, "classes": 10}
SIZES = {
    "depth": (5, 10, 20, 50, 100),
    "width": (256, 512, 1024, 1536, 2048),
    "batch": (64, 256, 512, 1024, 2048),
    "classes": (10, 1000, 2000, 5000, 10_000),
}
POWERS = {"depth": 1, "width": 2, "batch": 1, "classes": 1}
GLOBAL = ("dense", "vgg13-bn/4", "gpt")


def dense(depth: int, width: int, batch: int, classes: int) -> tuple:
    chain, params = zoo.dense_network((*[width] * depth, classes), jax.random.key(0))
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(batch, width)), jnp.float32)
    return chain, params, x, jnp.asarray(random.integers(0, classes, batch)), cross_entropy, None


def tops(chain: lh.Chain, params, x, y, loss, context) -> list[lh.Spectrum]:
    """As many products for each block, converged or not."""
    matching = lh.back_match(chain, params, x, y, loss, context)
    method = lh.GolubKahan(which="largest", k=1, max_matvecs=STEPS, rtol=1e-12, basis_size=STEPS + 2)
    hessians = [lh.local_hessian(matching, name) for name in chain.names if jax.tree.leaves(params[name])]
    return [lh.spectrum(hessian, method, throw=False) for hessian in hessians]


def timed(problem: tuple, repeats: int = 3) -> tuple[float, float, int]:
    """Seconds of the first call and of a later one with other parameters; products with R in the latter."""
    chain, params, *rest = problem
    seconds = []
    for i in range(1 + repeats):
        changed = jax.block_until_ready(jax.tree.map(lambda leaf, i=i: (1 + i / 1000) * leaf, params))
        begin = time.process_time()
        found = jax.block_until_ready(tops(chain, changed, *rest))
        seconds.append(time.process_time() - begin)
    return seconds[0], min(seconds[1:]), sum(int(np.max(spectrum.matvecs)) for spectrum in found)


def one(axis: str, size: int) -> None:
    before, compiling = _peak(), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiling.append(seconds) if event.endswith("backend_compile_duration") else None
    )
    first, again, _ = timed(dense(**(USUAL | {axis: size})))
    row = {"size": size, "first": first, "again": again, "mib": _peak() - before, "programs": len(compiling)}
    print(json.dumps(row))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def against_global(name: str) -> None:
    case = None if name == "dense" else zoo.case(name)
    problem = (
        dense(20, 512, 256, 10)
        if case is None
        else (case.cut.chain, case.cut.params, case.x, case.y, case.loss, case.cut.context)
    )
    chain, params, x, y, loss, context = problem
    whole = lh.Block("network", lambda params, z, context: chain.forward(params, z, context)[-1])
    at_once = lh.Chain([whole]), {"network": params}, x, y, loss, context
    for _ in range(2):  # in turns, so that both meet the same machine
        local, together = timed(problem), timed(at_once)
    blocks = sum(1 for block in chain.names if jax.tree.leaves(params[block]))
    each = local[2] / blocks
    ratio = (local[1] / each) / (together[1] / together[2])  # a run may end before its last product
    print(
        f"{name:12s} {blocks:3d} blocks, {each:.0f} products each {local[1]:7.2f} s   "
        f"global, {together[2]} products {together[1]:7.2f} s   ratio for as many products {ratio:.2f}",
        flush=True,
    )


def straight(rows: list[dict], axis: str) -> tuple[np.ndarray, float]:
    """Intercept and slope of the seconds of a later call over the size to its power, and R^2."""
    x = np.array([row["size"] for row in rows], float) ** POWERS[axis]
    seconds = np.array([row["again"] for row in rows])
    slope, intercept = np.polyfit(x, seconds, 1)
    rest = seconds - intercept - slope * x
    return np.array([intercept, slope]), 1 - rest @ rest / np.sum((seconds - seconds.mean()) ** 2)


def draw(found: dict[str, list[dict]], path: str) -> None:
    figure = Figure(figsize=(3.2 * len(found), 3), layout="constrained")
    for ax, (axis, rows) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        (intercept, slope), r2 = straight(rows, axis)
        x = np.array([row["size"] for row in rows], float) ** POWERS[axis]
        ax.plot(x, [row["again"] for row in rows], "o")
        ax.plot(x, intercept + slope * x, "-", color="gray", linewidth=1)
        ax.set(xlabel=axis if POWERS[axis] == 1 else f"{axis}$^2$", title=f"$R^2$ = {r2:.4f}", ylim=(0, None))
    figure.axes[0].set_ylabel("seconds of a later call")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="*", default=[*SIZES, "global"], choices=[*SIZES, "global"])
    parser.add_argument("--figure", help="draw the lines into this file")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        axis, size = options.one
        against_global(size) if axis == "global" else one(axis, int(size))
        return
    found: dict[str, list[dict]] = {}
    for axis in options.axes:
        for size in GLOBAL if axis == "global" else SIZES[axis]:
            command = [sys.executable, __file__, "--one", axis, str(size)]
            said = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
            if axis == "global":
                print(said, end="", flush=True)
                continue
            row = json.loads(said)
            found.setdefault(axis, []).append(row)
            print(
                f"{axis:8s} {size:6d}   first {row['first']:6.2f} s, {row['programs']:3d} programs   "
                f"again {row['again']:7.3f} s   {row['mib']:7.0f} MiB above the imports",
                flush=True,
            )
        if axis in found:
            (intercept, slope), r2 = straight(found[axis], axis)
            power = "" if POWERS[axis] == 1 else f"^{POWERS[axis]}"
            print(f"{axis:8s} again = {intercept:.3g} + {slope:.3g} {axis}{power}, R^2 = {r2:.4f}", flush=True)
    if options.figure:
        draw(found, options.figure)


if __name__ == "__main__":
    main()
