"""One table of all contenders; see README.md."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
CASES = ("mlp", "vgg13-bn/4", "gpt")
CONTENDERS = ("localhessian", "curvlinops", "torch by hand", "hessian-eigenthings", "PyHessian")
ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
}


def measure(python: str, contender: str, case: str, weights: str, core: int) -> dict:
    script = "ours.py" if contender == "localhessian" else "peers.py"
    command = ["taskset", "-c", str(core), python, str(HERE / script), contender, case, weights]
    done = subprocess.run(command, env={**os.environ, **ONE_CORE}, capture_output=True, text=True, check=False)
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
        f"products {found['products']['W']:4d} +{found['products']['z']:5d}   residual {found['residual']:.1e}   "
        f"top off by {found.get('off', 0):.1e}   {found['megabytes']:6.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=sys.executable, help="a Python that has the other libraries")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS))
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    results: dict[str, dict] = {}
    for case in options.cases:
        print(f"{case}: seconds W + z; ratio to curvlinops, warm", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            weights = str(pathlib.Path(folder) / "weights.npz")
            prepare = [sys.executable, str(HERE / "ours.py"), "export", case, weights]
            subprocess.run(prepare, env={**os.environ, **ONE_CORE}, check=True)
            found = {}
            for contender in options.contenders:
                python = sys.executable if contender == "localhessian" else options.peers
                found[contender] = measure(python, contender, case, weights, options.core)
            _compare(found)
            for contender, one in found.items():
                print(line(contender, one, found.get("curvlinops")), flush=True)
        results[case] = found
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def _compare(found: dict[str, dict]) -> None:
    """How far each contender's top eigenvalues are from the largest that anybody found, relative."""
    sound = [one for one in found.values() if "top" in one]
    for one in sound:
        gaps = [1 - value / max(other["top"][key] for other in sound) for key, value in one["top"].items()]
        one["off"] = max(gaps)


if __name__ == "__main__":
    main()
