"""Whole exact spectra of every H_W by `lh.Structured`, against what curvlinops takes for the top eigenvalue alone.

One core, the same weights and data, one run; the other library lives in an environment of its own (spectra/README.md):

    python benchmarks/structured.py --peers peers/bin/python [--cases mlp vgg13-bn/4] [--out FILE]

H_z of affine and activated layers too, on some samples (all would be slow); of convolutions it has no structure.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

import localhessian as lh
from localhessian.lab import zoo

sys.path.append(str(pathlib.Path(__file__).parent / "spectra"))
from run import HERE, ONE_CORE
from run import measure as measure_peer

SAMPLES = 16


def measure(name: str, seed: int) -> dict:
    """Seconds, predicted and taken, of every block."""
    case = zoo.case(name, seed=seed)
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chain, params, context = case.cut
    matching = jax.block_until_ready(lh.back_match(chain, params, case.x, case.y, case.loss, context))
    some = np.sort(np.random.default_rng(0).choice(len(case.x), min(SAMPLES, len(case.x)), replace=False))
    rows = []
    for wrt in ("params", "input"):
        for block in chain.names:
            if wrt == "input" and bool(matching.coupled[block]):
                continue
            operator = lh.local_hessian(matching, block, wrt, samples=None if wrt == "params" else some)
            method = lh.Structured(max_operations=float("inf"))
            explanation = lh.explain(operator, method)
            if explanation.structure is None:
                continue
            begin = time.process_time()
            found = lh.spectrum(operator, method)
            jax.block_until_ready(found.eigenvalues)
            seconds = time.process_time() - begin
            rows.append(
                {
                    "block": block,
                    "wrt": wrt,
                    "order": operator.size,
                    "seconds": seconds,
                    "predicted": explanation.seconds,
                    "values": int(np.sum(found.multiplicities)),
                    "structure": str(explanation.structure),
                }
            )
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imported) / 1024
    return {"rows": rows, "megabytes": megabytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="a Python that has curvlinops; without it only ours")
    parser.add_argument("--cases", nargs="*", default=["mlp", "vgg13-bn/4"])
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument("--limit", type=int, default=600, help="seconds for the other library")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.seed)))
        return
    results = {}
    for case in options.cases:
        command = ["taskset", "-c", str(options.core), sys.executable, __file__, "--measure", case]
        command += ["--seed", str(options.seed)]
        done = subprocess.run(command, env={**os.environ, **ONE_CORE}, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        found = results[case] = json.loads(done.stdout.strip().splitlines()[-1])
        for row in found["rows"]:
            print(
                f"  {row['block']:10s} {row['wrt']:6s} order {row['order']:7d}   {row['seconds']:6.2f} s   "
                f"(decomposition predicted {row['predicted']:6.2f} s)   {row['structure']}"
            )
        total = {w: sum(row["seconds"] for row in found["rows"] if row["wrt"] == w) for w in ("params", "input")}
        found["seconds"] = total
        print(f"{case}: every H_W {total['params']:.2f} s, H_z of {SAMPLES} samples {total['input']:.2f} s, ", end="")
        print(f"{found['megabytes']:.0f} MB above the libraries")
        if options.peers:
            found["curvlinops"] = _peer(options, case)
            top = found["curvlinops"]["warm"]["W"]
            print(
                f"{case}: curvlinops, the top of every H_W {top:.2f} s: ratio {total['params'] / top:.2f}", flush=True
            )
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def _peer(options: argparse.Namespace, case: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        weights = str(pathlib.Path(folder) / "weights.npz")
        prepare = [sys.executable, str(HERE / "ours.py"), "export", case, weights, str(options.seed)]
        subprocess.run(prepare, env={**os.environ, **ONE_CORE}, check=True)
        return measure_peer(options, "curvlinops", case, weights)


if __name__ == "__main__":
    main()
