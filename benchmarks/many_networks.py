"""Exact condition numbers of many small networks: one compiled program for all of them, against one after the other.

    OPENBLAS_NUM_THREADS=1 taskset -c 0 python benchmarks/many_networks.py [--networks 100]

CPU seconds. An MLP 16-32-32-10 with tanh, 64 samples, at as many scales of its weights; H_W of a hidden layer, and H_z
of every sample. Both routes give every eigenvalue; the host's from Gram matrices in float64.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import localhessian as lh
from localhessian.lab import zoo

WIDTHS, SAMPLES = (16, 32, 32, 10), 64


def seconds(work: Callable[[], object]) -> tuple[object, float]:
    begin = time.process_time()
    result = jax.block_until_ready(work())
    return result, time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=100)
    count = parser.parse_args().networks
    chain, x = zoo.dense_network(WIDTHS, jax.random.key(0)).chain, jax.random.normal(jax.random.key(1), (SAMPLES, 16))
    y, loss = jnp.arange(SAMPLES) % WIDTHS[-1], optax.softmax_cross_entropy_with_integer_labels
    scaled = lambda key, gain: jax.tree.map(lambda leaf: gain * leaf, zoo.dense_network(WIDTHS, key).params)
    params = jax.vmap(scaled)(jax.random.split(jax.random.key(0), count), jnp.geomspace(0.3, 1.2, count))
    apart = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(count)]

    for wrt in ("params", "input"):

        def kappa(params: dict, wrt: str = wrt) -> lh.ConditionNumber:
            matching = lh.back_match(chain, params, x, y, loss)
            samples = None if wrt == "params" else range(SAMPLES)
            return lh.condition_number(lh.spectrum(lh.local_hessian(matching, "dense2", wrt, samples=samples)))

        together = jax.jit(jax.vmap(kappa))
        found, first = seconds(lambda together=together: together(params))
        _, again = seconds(lambda together=together: together(params))
        _, first_alone = seconds(lambda kappa=kappa: kappa(apart[0]))
        exact, alone = seconds(lambda kappa=kappa: [kappa(one) for one in apart])
        values = np.stack([one.value for one in exact])
        held = np.mean((found.lower <= values * (1 + 1e-5)) & (values <= found.upper * (1 + 1e-5)))
        worst = np.nanmax(np.abs(found.value / values - 1))
        print(
            f"{'H_W' if wrt == 'params' else 'H_z'} of {count} networks: one program {again:.2f} s (first call "
            f"{first:.1f} s), one by one {alone:.2f} s (first {first_alone:.1f} s): {alone / again:.1f} times as long; "
            f"kappa differs by {worst:.1e} at most, intervals hold {100 * held:.1f} %"
        )


if __name__ == "__main__":
    main()
