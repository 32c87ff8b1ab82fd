# %% [markdown]
# # Initialization and depth: where isometry survives
#
# A linear block with an orthogonal weight matrix has H_z = I: every direction comes back as it went in. Then come
# the activations, the scale and the depth. What is left of the isometry? A few programs answer for hundreds of
# networks.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import localhessian as lh

WIDTH, SAMPLES = 32, 8
ACTIVATIONS = {"linear": lambda u: u, "tanh": jnp.tanh, "relu": jax.nn.relu}


# %% [markdown]
# ## One network, as a case of a sweep
#
# `scale` multiplies all weights. `init` is 1 for orthogonal matrices and 0 for Gaussian ones of variance 1/width
# (so He's initialization is the scale √2). The case returns what `lh.measure` tells of H_z of the last block, and
# by how much a displacement (what back-propagation asks of a block) shrinks or grows on its way from the last
# block down to the first.


# %%
def orthogonal(gaussian):
    q, r = jnp.linalg.qr(gaussian)
    return q * jnp.sign(jnp.diagonal(r, axis1=1, axis2=2))[:, None, :]


def squared_error(z, y):
    return 0.5 * ((z - y) ** 2).sum(1)


def case(scale, init, seed, depth, activation):
    function = ACTIVATIONS[activation]
    chain = lh.Chain([lh.Block(f"layer{i}", lambda w, z: function(z @ w)) for i in range(1, depth + 1)])
    of_weights, of_data = jax.random.split(jax.random.key(seed))
    gaussian = jax.random.normal(of_weights, (depth, WIDTH, WIDTH))
    weights = scale * jnp.where(init == 1, orthogonal(gaussian), gaussian / WIDTH**0.5)
    params = {f"layer{i}": w for i, w in enumerate(weights, 1)}
    x, y = jax.random.normal(of_data, (2, SAMPLES, WIDTH))

    last = f"layer{depth}"
    H = lh.measure(chain, params, x, y, squared_error, blocks=last, wrt="input", samples=[0, 1])[last, "input"]
    asked = [jnp.linalg.norm(r) for r in lh.back_match(chain, params, x, y, squared_error).residuals[1:]]
    return {"kappa": H.kappa_plus, "rank": H.rank, "signal": asked[0] / asked[-1]}


axes = {
    "scale": [0.5, 0.7, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0],
    "init": [0, 1],
    "seed": range(8),
    "depth": [2, 5, 10],
    "activation": list(ACTIVATIONS),
}
found = lh.sweep(case, axes, static_axes=("depth", "activation"))
print(f"{found.finished.size} networks, {found.attrs['compilations']} compilations")

# %% [markdown]
# ## Condition numbers of the last block
#
# The line is the median of eight seeds; the pale band holds all of them, at depth 10.

# %%
LOOKS = {0: ("Gaussian", "tab:red"), 1: ("orthogonal", "tab:blue")}
STYLES = {2: ":", 5: "--", 10: "-"}


def draw(ax, values):
    for init, (name, color) in LOOKS.items():
        for depth, style in STYLES.items():
            some = values.sel(init=init, depth=depth)
            ax.semilogy(some.scale, some.median("seed"), style, color=color, label=f"{name}, {depth} layers")
        ax.fill_between(some.scale, some.min("seed"), some.max("seed"), color=color, alpha=0.15, lw=0)
    ax.set_xlabel("scale of the weights")
    ax.grid(alpha=0.3)


fig, panels = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
for ax, activation in zip(panels, ACTIVATIONS, strict=True):
    draw(ax, found.kappa.sel(activation=activation))
    ax.set_title(activation)
panels[0].set_ylabel("$\\kappa^+$ of $H_z$, last block")
panels[2].legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# Three pictures, three laws.
#
# **Linear.** Orthogonal: 1, at every scale and depth. Gaussian: thousands and more, at every scale. Scaling a
# matrix moves all of its singular values together; no scale repairs a Gaussian one.

# %%
middle = found.median("seed")
linear = middle.kappa.sel(activation="linear")
assert np.allclose(found.kappa.sel(activation="linear", init=1), 1, atol=1e-3)
assert (linear.sel(init=0) > 1000).all()

# %% [markdown]
# **ReLU.** The lines are flat: which units are on does not depend on the scale of the weights. And with
# orthogonal weights `kappa_plus` is 1 again. But look at the rank before you are glad: it is a perfect isometry,
# on half of the space. The other half is gone.

# %%
relu = found.sel(activation="relu", init=1)
print(f"kappa_plus at most {float(relu.kappa.max()):.4f}; rank {float(relu['rank'].mean()):.1f} of {WIDTH} on average")
assert np.allclose(relu.kappa, 1, atol=1e-3)
assert 0.4 * WIDTH < float(relu["rank"].mean()) < 0.6 * WIDTH

# %% [markdown]
# **tanh.** Small weights make it nearly linear, so orthogonal ones stay nearly an isometry up to a scale of about
# one, and the better the deeper: each layer shrinks its values a little, and the next works nearer to zero, where
# tanh is straight. Beyond, units saturate one after the other, and the condition number climbs by orders of
# magnitude, for both.

# %%
tanh = middle.kappa.sel(activation="tanh", depth=10)
for scale in (0.5, 1.0, 1.4, 2.0, 3.0):
    gaussian_kappa, orthogonal_kappa = (float(tanh.sel(scale=scale, init=init)) for init in (0, 1))
    print(f"tanh, 10 layers, scale {scale}: orthogonal {orthogonal_kappa:8.3g}, Gaussian {gaussian_kappa:8.3g}")
assert float(tanh.sel(scale=0.5, init=1)) < 1.01
assert float(tanh.sel(scale=1.0, init=1)) < 5
assert float(tanh.sel(scale=2.0, init=1)) > 1000
by_depth = middle.kappa.sel(activation="tanh", init=1, scale=1.0)
assert (by_depth.diff("depth") < 0).all()

# %% [markdown]
# ## Then why not make the weights small?
#
# Because a condition number is blind to size. Here is how much of a displacement arrives at the first block:

# %%
fig, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
draw(panels[0], found.signal.sel(activation="tanh"))
panels[0].axhline(1, color="gray", lw=0.8)
panels[0].set(ylabel="displacement, first block / last", title="tanh: does the signal arrive?")
panels[0].legend(frameon=False, loc="lower right")
for init, (name, color) in LOOKS.items():
    some = middle.sel(activation="tanh", init=init, depth=10)
    panels[1].loglog(some.signal, some.kappa, "o-", color=color, label=f"{name}, 10 layers")
panels[1].axvline(1, color="gray", lw=0.8)
panels[1].set(xlabel="displacement, first block / last", ylabel="$\\kappa^+$ of $H_z$", title="size against shape")
panels[1].legend(frameon=False)
panels[1].grid(alpha=0.3)
plt.show()

# %%
small = middle.sel(activation="tanh", init=1, depth=10, scale=0.5)
print(f"orthogonal, scale 0.5: kappa_plus {float(small.kappa):.4f}, and {float(small.signal):.4f} of the signal")
assert np.isclose(float(small.signal), 0.5**9, rtol=0.1)

# %% [markdown]
# At the scale 1/2 every block is nearly a perfect isometry up to its factor, and nine such factors on the way
# down leave 2⁻⁹ of the signal. **An isometry has to keep the shape and the size.** With tanh the two wishes pull
# apart: around the scale where ten layers keep the size (1.4), the condition number has left 1 far behind. But at
# every scale that lets a signal through, the orthogonal network is better conditioned than the Gaussian one: that
# is what can be said for it.

# %%
deep = middle.sel(activation="tanh", depth=10)
assert 0.5 < float(deep.signal.sel(init=1, scale=1.4)) < 2
assert float(deep.kappa.sel(init=1, scale=1.4)) > 20
assert (deep.kappa.sel(init=1) < deep.kappa.sel(init=0)).all()

# %% [markdown]
# ## What this does not show
#
# - These are random networks on random data, before the first step of training. Training changes all of it
#   (notebook 5).
# - Beyond 10⁹ the figures end: float32 does not tell smaller singular values from zero.
# - Two samples of each network, and its last block; others can be asked for by `blocks=` and `samples=`.
# - Square layers of one width. A layer that narrows, or a convolution, loses directions however it is
#   initialized.
# - That an isometry at the start makes training faster is not shown: that takes tuned rates and seeds (notebook
#   6).
