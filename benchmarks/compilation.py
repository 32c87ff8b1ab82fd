"""Compilation of `lh.analyze` on a deep transformer against a shallow one: equal layers compile once.

python benchmarks/compilation.py [--layers 2 12]
"""

import argparse
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import localhessian as lh
from localhessian.lab import zoo


def measure(layers: int) -> None:
    spent: dict[str, float] = {}

    def listen(event: str, duration: float, **details) -> None:
        if event.startswith("/jax/core/compile/"):
            spent[event.rsplit("/", 1)[1]] = spent.get(event.rsplit("/", 1)[1], 0.0) + duration

    model = zoo.gpt(vocabulary=64, context=16, layers=layers, dim=32, heads=4, rngs=nnx.Rngs(0))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (8, 16)))
    chain, params, context = lh.chain_from_nnx(model, tokens, at="layers.*")
    jax.monitoring.register_event_duration_secs_listener(listen)
    begin = time.perf_counter()
    method = lh.Lanczos(max_matvecs=10)
    lh.analyze(chain, params, tokens, tokens, zoo.token_loss, context, samples_per_block=2, method=method)
    wall = time.perf_counter() - begin
    parts = ", ".join(f"{name.removesuffix('_duration')} {seconds:.2f} s" for name, seconds in sorted(spent.items()))
    print(f"{layers:3d} layers: compilation {sum(spent.values()):6.2f} s of {wall:6.2f} s   ({parts})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", nargs="*", type=int, default=[2, 12])
    options = parser.parse_args()
    if len(options.layers) == 1:
        measure(options.layers[0])
        return
    for layers in options.layers:
        subprocess.run([sys.executable, __file__, "--layers", str(layers)], check=True)


if __name__ == "__main__":
    main()
