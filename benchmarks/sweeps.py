"""Many networks: `lh.sweep` against `lh.analyze` network by network, and against a `jit(vmap(...))` written by hand.

    python benchmarks/sweeps.py [mlp|conv] [--scales 10] [--seeds 10] [--wrt input] [--classes 64]
    python benchmarks/sweeps.py shapes [--plain]    memory over networks of 200 shapes, each with programs of its own

Figures are CPU seconds for each network once everything is compiled (of the sweep: of its chunks after the first), with
BLAS on one thread; and the error of kappa_plus against Gram matrices in float64.
"""

import argparse
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import threadpoolctl

import localhessian as lh

LOSS = optax.softmax_cross_entropy_with_integer_labels
SAMPLES = 4
"""Of which H_z is taken."""
HIDDEN = [f"layer{i}" for i in range(4)]
CLASSES = 10


def dense(w, z):
    return jnp.tanh(z @ w)


def conv(w, z):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jnp.tanh(jax.lax.conv_general_dilated(z, w, (1, 1), "SAME", dimension_numbers=dimensions))


def head(w, z):
    return z.reshape(len(z), -1) @ w


def mlp(key, scale, classes=CLASSES):
    """Five layers of 64."""
    keys = jax.random.split(key, 6)
    draw = lambda key, n: scale * jax.random.normal(key, (64, n)) / 8
    params = {name: draw(keys[i], 64) for i, name in enumerate(HIDDEN)} | {"head": draw(keys[4], classes)}
    return network(dense), params, jax.random.normal(keys[5], (16, 64)), jnp.arange(16) % 10


def cnn(key, scale, classes=CLASSES):
    """Four convolutions with four channels on 16 x 16 images, and a head."""
    keys = jax.random.split(key, 6)
    draw = lambda key, fan_in: scale * jax.random.normal(key, (3, 3, fan_in, 4)) / np.sqrt(9 * fan_in)
    params = {name: draw(keys[i], 4 if i else 1) for i, name in enumerate(HIDDEN)}
    params["head"] = scale * jax.random.normal(keys[4], (1024, classes)) / 32
    return network(conv), params, jax.random.normal(keys[5], (8, 16, 16, 1)), jnp.arange(8) % 10


def network(apply):
    return lh.Chain([*(lh.Block(name, apply) for name in HIDDEN), lh.Block("head", head)])


def case(make, wrt, scale, seed):
    chain, params, x, y = make(jax.random.key(seed), scale)
    return lh.measure(chain, params, x, y, LOSS, wrt=wrt, samples_per_block=SAMPLES)


def by_hand(make, wrt, scale, seed):
    """kappa_plus of every H of `wrt` (but the last block's, which knows the loss), as one writes it down at first."""
    chain, params, x, _ = make(jax.random.key(seed), scale)
    activations, kappas = chain.forward(params, x), {}
    for name, block, z in zip(HIDDEN, chain.blocks, activations, strict=False):
        if "input" in wrt:
            chosen = z[np.linspace(0, len(z) - 1, SAMPLES).round().astype(int)]
            one = lambda z, block=block, w=params[name]: block.apply(w, z[None])[0].ravel()
            jacobians = jax.vmap(jax.jacrev(one))(chosen).reshape(len(chosen), -1, chosen[0].size)
            kappas[name, "input"] = jnp.median(kappa_of(jacobians))
        if "params" in wrt:
            jacobian = jax.jacrev(lambda w, block=block, z=z: block.apply(w, z).ravel())(params[name])
            kappas[name, "params"] = kappa_of(jacobian.reshape(len(jacobian), -1))
    return kappas


def kappa_of(jacobians):
    sigma = jnp.linalg.svd(jacobians, compute_uv=False)
    least = jnp.where(sigma > 100 * jnp.finfo(sigma.dtype).eps * sigma[..., :1], sigma, jnp.inf).min(axis=-1)
    return (sigma[..., 0] / least) ** 2


def timed(function):
    begun = time.process_time()
    result = jax.block_until_ready(function())
    return result, time.process_time() - begun


def choice(count=32):
    """Cases with convolutions run one by one on the CPU: what their gradients take so and together, in CPU seconds."""
    chain, params, x, y = cnn(jax.random.key(0), 1.0)
    gradient = jax.grad(lambda params, scale: LOSS(chain.forward(params, scale * x)[-1], y).mean())
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), params)
    scales = jnp.linspace(0.5, 2.0, count)
    one, together = jax.jit(gradient), jax.jit(jax.vmap(gradient))
    at = lambda i: jax.tree.map(lambda leaf: leaf[i], many)
    ways = {
        "one by one": lambda: [one(at(i), scales[i]) for i in range(count)],
        "together": lambda: together(many, scales),
    }
    for name, way in ways.items():
        timed(way)
        print(f"gradients of {count} convolutional networks {name}: {timed(way)[1] / count:.5f} s each")


class Watch:
    """CPU time and memory of a sweep, from its progress."""

    def __init__(self):
        self.stamps, self.resting = [], 0.0

    def __call__(self, done, total, what):
        self.stamps.append((time.process_time(), done))
        if len(self.stamps) == 2:  # compiled, and run once
            self.resting = memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak from here on

    @property
    def first(self):
        return self.stamps[1][0] - self.stamps[0][0]

    @property
    def running(self):
        (begun, some), (ended, every) = self.stamps[1], self.stamps[-1]
        return (ended - begun) / (every - some) if every > some else np.nan  # all in one chunk


def memory(name):
    """In MiB: of this process now (VmRSS), or the most that it had (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def compare(make, given):
    wrt = ("params", "input") if given.wrt == "both" else (given.wrt,)
    run = functools.partial(case, make, wrt)
    axes = {"scale": np.linspace(0.5, 2.0, given.scales), "seed": range(given.seeds)}
    count = given.scales * given.seeds
    one, watch = Watch(), Watch()
    lh.sweep(run, {name: list(values)[:1] for name, values in axes.items()}, progress=one)
    found = lh.sweep(run, axes, progress=watch, max_bytes=given.budget * 2**20)
    peak = memory("VmHWM") - watch.resting
    print(f"sweep of {count} networks: {found.attrs['compilations']} compilations, {watch.running:.4f} s a network;")
    print(f"  compiled and first chunk run: {watch.first:.1f} s, of one network alone {one.first:.1f} s;")
    print(f"  memory while it runs: {peak:.0f} MiB above rest, of {given.budget} MiB asked for")

    analyze = lambda seed: lh.analyze(*make(jax.random.key(seed), 1.0), LOSS, wrt=wrt, samples_per_block=SAMPLES)
    analyze(0)
    _, spent = timed(lambda: [analyze(seed).rows[0].rank for seed in range(1, 1 + given.analyzed)])
    print(
        f"analyze, warm: {spent / given.analyzed:.4f} s a network, {spent / given.analyzed / watch.running:.1f} times"
    )

    points = np.array([(scale, seed) for scale in axes["scale"] for seed in axes["seed"]])
    chosen = points[:: max(count // given.by_hand, 1)][: given.by_hand]
    hand = jax.jit(jax.vmap(functools.partial(by_hand, make, wrt)))
    arguments = jnp.asarray(chosen[:, 0], jnp.float32), jnp.asarray(chosen[:, 1], jnp.int32)
    timed(lambda: hand(*arguments))
    kappas, spent = timed(lambda: hand(*arguments))
    print(f"by hand: {spent / len(chosen):.4f} s a network, {spent / len(chosen) / watch.running:.2f} times")
    for side in wrt if given.true else ():
        true = [truth(make, side, *point) for point in chosen[: given.true]]
        for name, of in (
            ("sweep", lambda i, b, side=side: float(found.kappa_plus.sel(block=b, wrt=side).values.ravel()[i])),
            ("by hand", lambda i, b, side=side: float(kappas[b, side][i])),
        ):
            numbers = range(0, count, max(count // given.by_hand, 1)) if name == "sweep" else range(len(chosen))
            errors = [abs(of(i, b) / t[b] - 1) for i, t in zip(numbers, true, strict=False) for b in HIDDEN]
            known = np.isfinite(errors)
            print(f"  kappa_plus of {side}, {name}: {known.sum()} of {len(errors)} known, ", end="")
            print(
                f"relative error {np.median(np.array(errors)[known]):.1e}, worst {np.max(np.array(errors)[known]):.1e}"
            )


def truth(make, side, scale, seed):
    """kappa_plus of the float32 network: Jacobians in float64, at the float32 parameters and activations."""
    chain, params, x, _ = make(jax.random.key(int(seed)), jnp.float32(scale))
    activations = chain.forward(params, x)
    with jax.enable_x64(True):
        params, activations = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, activations))
        found = {}
        for name, block, z in zip(HIDDEN, chain.blocks, activations, strict=False):
            if side == "params":
                jacobian = jax.jacrev(lambda w, block=block, z=z: block.apply(w, z).ravel())(params[name])
                jacobians = np.asarray(jacobian).reshape(1, len(jacobian), -1)
            else:
                chosen = z[np.linspace(0, len(z) - 1, SAMPLES).round().astype(int)]
                one = lambda z, block=block, w=params[name]: block.apply(w, z[None])[0].ravel()
                jacobians = np.asarray(jax.vmap(jax.jacrev(one))(chosen)).reshape(len(chosen), -1, chosen[0].size)
            values = []
            for jacobian in jacobians:
                wide = jacobian if jacobian.shape[0] <= jacobian.shape[1] else jacobian.T
                sigma = np.sqrt(np.maximum(np.linalg.eigvalsh(wide @ wide.T), 0))
                sigma = sigma[sigma > 100 * np.finfo(np.float32).eps * sigma[-1]]
                values.append((sigma[-1] / sigma[0]) ** 2)
            found[name] = np.median(values)
    return found


def shapes(compiled, count):
    """Memory while tanh networks of so many widths are measured, each by programs of its own."""

    def of_shape(scale, width):
        chain = lh.Chain([lh.Block(f"layer{i}", dense) for i in range(2)])
        keys = jax.random.split(jax.random.key(0), 3)
        draw = lambda key, n: scale * jax.random.normal(key, (n, width)) / np.sqrt(width)
        params = {f"layer{i}": draw(keys[i], width) for i in range(2)}
        return lh.measure(
            chain, params, draw(keys[-1], 4), jnp.zeros((4, width)), squares, blocks="layer0", wrt="params"
        )

    def show(done, total, what):
        if done % max(total // 10, 1) == 0:
            print(f"after {done} of {total} shapes: {memory('VmRSS'):.0f} MiB", flush=True)

    axes = {"scale": [1.0], "width": range(5, 5 + count)}
    lh.sweep(of_shape, axes, "width", compiled=compiled, progress=show)


def squares(z, y):
    return 0.5 * ((z - y) ** 2).sum(axis=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", choices=("mlp", "conv", "shapes"), default="mlp")
    parser.add_argument("--scales", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--wrt", choices=("input", "params", "both"), default="both")
    parser.add_argument("--budget", type=int, default=1024, help="MiB that a compiled program may take")
    parser.add_argument("--analyzed", type=int, default=3, help="networks of which `analyze` is timed")
    parser.add_argument("--by-hand", type=int, default=2, help="networks that the program written by hand takes")
    parser.add_argument("--true", type=int, default=2, help="networks of which the error is taken")
    parser.add_argument("--shapes", type=int, default=200, help="how many")
    parser.add_argument("--plain", action="store_true", help="shapes: as plain Python (`compiled=False`)")
    given = parser.parse_args()
    if given.network == "shapes":
        shapes(not given.plain, given.shapes)
        return
    if given.network == "conv":
        choice()
    with threadpoolctl.threadpool_limits(1, "blas"):
        compare(functools.partial({"mlp": mlp, "conv": cnn}[given.network], classes=given.classes), given)


if __name__ == "__main__":
    main()
