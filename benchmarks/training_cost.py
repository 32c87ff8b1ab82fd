"""What a step of training costs against one of SGD with momentum, on one core of the CPU or on an accelerator.

    python benchmarks/training_cost.py [--cases vgg13-bn-by4 resnet20-by4] [--batch 128] [--rounds 5] [--out FILE]

Each algorithm takes the same steps on random images, in turns, so that a machine that slows down does so for all; the
median over the rounds of the seconds of `--steps` steps (a multiple of 10: scale-amended SGD refreshes every 10) is
compared.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from localhessian.lab import Trainer, algorithm, images_from_arrays, network

ALGORITHMS = ("momentum", "adam", "scale-amended", "gauss-newton", "back-matching")


def seconds(trainer: Trainer, data, state, steps: int, batch: int) -> float:
    begin = time.perf_counter()
    state, _ = trainer.run(data, steps=steps, batch=batch, learning_rate=1e-4, start=state)
    jax.block_until_ready(state)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=["vgg13-bn-by4", "resnet20-by4"])
    parser.add_argument("--algorithms", nargs="*", default=list(ALGORITHMS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", type=int, default=32, help="of the images")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4 * options.batch, options.side, options.side, 3), dtype=np.uint8)
    labels = random.integers(0, options.classes, len(images))
    tested = slice(0, 10)
    data = images_from_arrays(images, labels, images[tested], labels[tested])
    results = {"device": jax.devices()[0].device_kind, **vars(options), "out": None}
    for case in options.cases:
        trainers, states, made = {}, {}, {}
        for name in options.algorithms:
            begin = time.perf_counter()
            trainers[name] = Trainer(network(case, data), algorithm(name))
            states[name] = jax.block_until_ready(trainers[name].start(0))
            made[name] = time.perf_counter() - begin
        compiled = {name: trainer.warm(data, options.batch) for name, trainer in trainers.items()}
        taken: dict[str, list[float]] = {name: [] for name in trainers}
        for _ in range(options.rounds):
            for name, trainer in trainers.items():
                fresh = jax.tree.map(jnp.copy, states[name])
                taken[name].append(seconds(trainer, data, fresh, options.steps, options.batch))
        medians = {name: float(np.median(times)) / options.steps for name, times in taken.items()}
        results[case] = {"seconds": medians, "compilation": compiled, "made": made}
        print(f"{case}, batch {options.batch}, {results['device']}")
        for name, median in medians.items():
            ratio = median / medians["momentum"]
            print(
                f"  {name:14s} {1e3 * median:8.1f} ms / step   {ratio:5.2f} x   first {compiled[name]:5.1f} s"
                f"   network and state {made[name]:5.1f} s",
                flush=True,
            )
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
