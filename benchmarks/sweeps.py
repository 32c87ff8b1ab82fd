"""Many networks: `lh.sweep` against `lh.analyze` network by network, and against a `jit(vmap(...))` written by hand.

    python benchmarks/sweeps.py [mlp|conv] [--scales 10] [--seeds 10] [--wrt input]

Figures are CPU seconds for each network, after everything is compiled (of the sweep: of its chunks after the first, so
more than 32 networks), and the error of kappa_plus against float64.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import localhessian as lh
from localhessian.lab import zoo

LOSS = optax.softmax_cross_entropy_with_integer_labels
SAMPLES = 4
"""Of which H_z is taken."""


def mlp(key, scale):
    chain, params = zoo.dense_network((*[64] * 5, 10), key)
    x = jax.random.normal(jax.random.fold_in(key, 5), (16, 64))
    return chain, jax.tree.map(lambda leaf: scale * leaf, params), x, jnp.arange(16) % 10


def cnn(key, scale):
    chain, params = zoo.digits_network("plain", key, depth=4, width=4)
    x = jax.random.normal(jax.random.fold_in(key, 5), (8, 16, 16, 1))
    return chain, jax.tree.map(lambda leaf: scale * leaf, params), x, jnp.arange(8) % 10


def case(make, wrt, scale, seed):
    chain, params, x, y = make(jax.random.key(seed), scale)
    return lh.measure(chain, params, x, y, LOSS, wrt=wrt, samples_per_block=SAMPLES)


def by_hand(make, scale, seed):
    """kappa_plus of every H_z (but the last block's, which knows the loss): what one writes down in six lines."""
    chain, params, x, _ = make(jax.random.key(seed), scale)
    activations = chain.forward(params, x)
    kappas = []
    for block, z in zip(chain.blocks[:-1], activations, strict=False):
        one = lambda z, block=block: block.apply(params[block.name], z[None])[0].ravel()
        chosen = z[np.linspace(0, len(z) - 1, SAMPLES).round().astype(int)]
        jacobians = jax.vmap(jax.jacrev(one))(chosen)
        sigma = jnp.linalg.svd(jacobians.reshape(len(chosen), jacobians.shape[1], -1), compute_uv=False)
        least = jnp.where(sigma > 100 * jnp.finfo(sigma.dtype).eps * sigma[:, :1], sigma, jnp.inf).min(axis=1)
        kappas.append(jnp.median((sigma[:, 0] / least) ** 2))
    return jnp.stack(kappas)


def timed(function):
    begun = time.process_time()
    result = jax.block_until_ready(function())
    return result, time.process_time() - begun


def choice(count=32):
    """Convolutions of several networks one by one or together: gradients, in CPU seconds each."""
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", choices=("mlp", "conv"), default="mlp")
    parser.add_argument("--scales", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--wrt", choices=("input", "params", "both"), default="both")
    parser.add_argument("--analyzed", type=int, default=3, help="networks of which `analyze` is timed")
    given = parser.parse_args()
    if given.network == "conv":
        choice()
    make = {"mlp": mlp, "conv": cnn}[given.network]
    wrt = ("params", "input") if given.wrt == "both" else given.wrt
    run = functools.partial(case, make, wrt)
    axes = {"scale": np.linspace(0.5, 2.0, given.scales), "seed": range(given.seeds)}
    count = given.scales * given.seeds

    stamps = []
    stamp = lambda done, total, what: stamps.append((time.process_time(), done))
    _, one = timed(lambda: lh.sweep(run, {name: list(values)[:1] for name, values in axes.items()}))
    found, whole = timed(lambda: lh.sweep(run, axes, progress=stamp))
    (begun, after_one), (ended, after_all) = stamps[1], stamps[-1]
    running = (ended - begun) / (after_all - after_one) if after_all > after_one else float("nan")
    print(f"sweep of {count}: {found.attrs['compilations']} compilation, CPU {whole:.1f} s (one network: {one:.1f} s),")
    print(f"  of which to compile and run the first chunk {begun - stamps[0][0]:.1f} s; then {running:.4f} s a network")

    analyze = lambda seed: lh.analyze(*make(jax.random.key(seed), 1.0), LOSS, wrt=wrt, samples_per_block=SAMPLES)
    timed(lambda: analyze(0).rows[0].rank)
    _, spent = timed(lambda: [analyze(seed).rows[0].rank for seed in range(1, 1 + given.analyzed)])
    print(f"analyze, warm: {spent / given.analyzed:.4f} s a network; the sweep is ", end="")
    print(f"{spent / given.analyzed / running:.1f} times as fast")

    if "input" in (wrt if given.wrt == "both" else (wrt,)):
        grid = jnp.meshgrid(jnp.asarray(axes["scale"], jnp.float32), jnp.arange(given.seeds), indexing="ij")
        hand = jax.jit(jax.vmap(functools.partial(by_hand, make)))
        points = [part.ravel() for part in grid]
        timed(lambda: hand(*points))
        kappas, spent = timed(lambda: hand(*points))
        with jax.enable_x64(True):
            true = np.stack([truth(make, *point) for point in zip(*map(np.asarray, points), strict=True)])
        ours = found.kappa_plus.sel(wrt="input").isel(block=slice(-1)).values.reshape(count, -1)
        errors = [np.nanmedian(np.abs(np.asarray(k) / true - 1)) for k in (ours, kappas)]
        print(f"by hand, H_z alone: {spent / count:.4f} s a network; ", end="")
        print(f"median relative error of kappa_plus: sweep {errors[0]:.1e}, by hand {errors[1]:.1e}")


def truth(make, scale, seed):
    """kappa_plus of the float32 network, by Gram matrices in float64 as `analyze` has them."""
    with jax.enable_x64(False):
        chain, *rest = make(jax.random.key(int(seed)), jnp.float32(scale))
        report = lh.analyze(chain, *rest, LOSS, wrt="input", samples_per_block=SAMPLES)
    return np.array([report[name, "input"].kappa_plus for name in chain.names[:-1]])


if __name__ == "__main__":
    main()
