"""One table of all contenders; see README.md."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from work import TOLERANCE

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
CASES = ("mlp", "vgg13-bn/4", "gpt")
CONTENDERS = ("localhessian", "curvlinops", "torch by hand", "hessian-eigenthings", "PyHessian", "matfree")
SCRIPTS = {"localhessian": "ours.py", "matfree": "by_matfree.py"}
"""In JAX: run by this Python; the others are torch."""
PATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "PYTHONPATH": PATH,
    "JAX_PLATFORMS": "cpu",
}


def place(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Where to run: what a command begins with, and its environment."""
    if options.device == "cuda":
        return [], {"PYTHONPATH": PATH, "BENCHMARK_DEVICE": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return ["taskset", "-c", str(options.core)], ONE_CORE


def measure(options: argparse.Namespace, contender: str, case: str, weights: str) -> dict:
    python = sys.executable if contender in SCRIPTS else options.peers
    script = str(HERE / SCRIPTS.get(contender, "peers.py"))
    command = [*place(options)[0], python, script, contender, case, weights, str(options.seed)]
    environment = {**os.environ, **place(options)[1]}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=options.limit
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {options.limit} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "died"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def line(contender: str, found: dict, base: dict | None) -> str:
    if "error" in found:
        return f"  {contender:20s} {found['error'][:100]}"
    warm = found["warm"]
    ratio = sum(base["warm"].values()) / sum(warm.values()) if base and "warm" in base else float("nan")
    first = found["setup"] + sum(found["first"].values())
    return (
        f"  {contender:20s} warm {warm['W']:6.2f} +{warm['z']:6.2f} s   {ratio:5.2f} x   first {first:6.2f} s   "
        f"products {found['products']['W']:4.0f} +{found['products']['z']:5.0f}   residual {found['residual']:.1e}   "
        f"top off by {found.get('off', 0):.1e}   {found['megabytes']:6.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=sys.executable, help="a Python that has the other libraries")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS))
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument("--limit", type=int, default=600, help="seconds for one contender")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="one core (default), or a GPU")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    results: dict[str, dict] = {}
    for case in options.cases:
        print(f"{case}: seconds W + z; ratio to curvlinops, warm", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            weights = str(pathlib.Path(folder) / "weights.npz")
            prepare = [sys.executable, str(HERE / "ours.py"), "export", case, weights, str(options.seed)]
            subprocess.run(prepare, env={**os.environ, **place(options)[1]}, check=True)
            found = {name: measure(options, name, case, weights) for name in options.contenders}
            _compare(found)
            for contender, one in found.items():
                print(line(contender, one, found.get("curvlinops")), flush=True)
        results[case] = found
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def _compare(found: dict[str, dict]) -> None:
    """How far each contender's top eigenvalues are below the largest that anybody found who reached the residual.

    PyHessian does not; and of the last block it takes the whole Hessian, so that its value may be larger.
    """
    done = [one for one in found.values() if "top" in one]
    sound = [one["top"] for one in done if one["residual"] <= TOLERANCE] or [one["top"] for one in done]
    for one in done:
        one["off"] = max(1 - value / max(top[key] for top in sound) for key, value in one["top"].items())


if __name__ == "__main__":
    main()
