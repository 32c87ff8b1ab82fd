# %% [markdown]
# # Training dynamics: watching the curvature while a network learns
#
# A deep network of sigmoids hardly learns at first: on the way down every layer shrinks what back-propagation
# asks for. Then, suddenly, it learns. What happened in between? `lh.Probe` sits beside the training step and
# looks.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import localhessian as lh
from localhessian.lab import digits
from localhessian.lab.zoo import dense_network

data = digits()
x, y = jnp.asarray(data.train_x.reshape(-1, 64)), jnp.asarray(data.train_y)
loss = optax.softmax_cross_entropy_with_integer_labels
chain, params = dense_network((64, 24, 24, 24, 24, 10), jax.random.key(0), activation="sigmoid")
print(chain.describe(params, x))

# %% [markdown]
# ## The loop, with a probe in it
#
# The probe gets the same 64 images every time, so that what moves is the network. `figures="full"` asks for whole
# spectra (the default is cheaper), and `budget=None` lets it take its time. Beside it we note how large a
# displacement each block is asked for.

# %%
optimizer = optax.adam(1e-2)


@jax.jit
def train_step(params, state, key):
    batch = jax.random.randint(key, (64,), 0, len(x))
    objective = lambda params: loss(chain.forward(params, x[batch])[-1], y[batch]).mean()
    updates, state = optimizer.update(jax.grad(objective)(params), state)
    return optax.apply_updates(params, updates), state


probe = lh.Probe(chain, loss, every=40, budget=None, figures="full")
state, asked, accuracy = optimizer.init(params), [], []
for step, key in enumerate(jax.random.split(jax.random.key(1), 401)):
    if probe(step, params, x[:64], y[:64]) is not None:
        matching = lh.back_match(chain, params, x[:64], y[:64], loss)
        asked.append([float(jnp.sqrt((r**2).mean())) for r in matching.residuals[1:]])
        accuracy.append(float((matching.activations[-1].argmax(1) == y[:64]).mean()))
    params, state = train_step(params, state, key)

history = probe.history
steps, asked = history.step.values, np.array(asked)
print(f"loss of these images {history.objective.values[0]:.2f} -> {history.objective.values[-1]:.2f}, ", end="")
print(f"accuracy {100 * accuracy[0]:.0f} % -> {100 * accuracy[-1]:.0f} %")

# %% [markdown]
# ## First it lets the signal through

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for b, name in enumerate(chain.names):
    left.semilogy(steps, asked[:, b], "o-", ms=3, color=plt.cm.viridis(0.92 * b / 4), label=name)
left.set(xlabel="step", ylabel="displacement asked of a block's output (rms)")
left.legend(frameon=False)
left.grid(alpha=0.3)
right.plot(steps, asked[:, 0] / asked[:, -1], "o-", ms=3, color="tab:blue")
right.set(xlabel="step", ylabel="displacement, first block / last", yscale="log")
right.grid(alpha=0.3)
right.axhline(1, color="gray", lw=0.8)
twin = right.twinx()
twin.plot(steps, 100 * np.array(accuracy), "--", color="tab:orange")
twin.set_ylabel("accuracy in % (dashed)")
plt.show()

# %%
shares = asked[:, 0] / asked[:, -1]
print(f"of what the last block is asked, the first one hears {shares[0]:.4f} at the start, {shares[-1]:.1f} at the end")
assert shares[0] < 0.02
assert shares[-1] > 1

# %% [markdown]
# At the start the first block hears less than a fiftieth of what the last one is told; in the end it is told
# *more*. The lines turn over. Why? A displacement goes through J_z of each block, so its size follows the
# spectrum of H_z = J_z^T J_z:

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
lh.plot.evolution(history, metric="lambda_max", wrt="input", ax=left)
left.get_legend().remove()
lh.plot.evolution(history, metric="kappa_q05", wrt="input", ax=right)
plt.show()

# %%
top = np.log(history.lambda_max.sel(wrt="input", block=["dense2", "dense3", "dense4"]))
half = int(np.argmax(np.array(accuracy) >= 0.5))  # the first look at which half of the images are right
growth, until_then = top.isel(step=-1) - top.isel(step=0), top.isel(step=half) - top.isel(step=0)
done = float((until_then / growth).mean())
print(f"the largest curvature by the input grows {float(np.exp(growth.min())):.0f}-fold at least;")
print(
    f"by step {steps[half]}, at {100 * accuracy[half]:.0f} % accuracy, {100 * done:.0f} % of it is done (in logarithms)"
)
assert float(growth.min()) > np.log(3)
assert done > 0.6
assert accuracy[half] < 0.8

# %% [markdown]
# **A deep sigmoid network learns to let the signal through before it has learned the digits**: most of the growth
# on the left is done while many of the images are still wrong.
#
# The right panel is the surprise. While the accuracy goes from chance to nearly all, the condition number of
# every H_z (at the 5 % quantile) goes *up*, by more than a factor of ten in every block: the strongest directions
# grow, and the weakest fade. (Hollow points: where zero begins is uncertain in float32.) Worse conditioned, and
# it learns: **a condition number by itself does not say how well a network trains.** What changed first here was
# the size of the signal.

# %%
kappa = history.kappa_q05.sel(wrt="input")
ratio = kappa.isel(step=-1) / kappa.isel(step=0)
print("kappa_q05, end over start:", ", ".join(f"{name} {float(ratio.sel(block=name)):.0e}" for name in chain.names))
assert (ratio > 10).all()
weakest = history.lambda_max.sel(wrt="input") / kappa
assert (weakest.isel(step=-1) < weakest.isel(step=0)).all()
assert accuracy[0] < 0.3
assert accuracy[-1] > 0.9

# %% [markdown]
# ## By the weights

# %%
lh.plot.evolution(history, metric="trace", wrt="params")

# %%
trace = history.trace.sel(wrt="params")
for name in chain.names:
    print(f"{name}: trace of H_W {float(trace.sel(block=name)[0]):5.3g} -> {float(trace.sel(block=name)[-1]):5.3g}")
assert (trace.isel(step=-1) < trace.isel(step=0)).all()
assert float(trace.sel(block="dense1")[-1]) < 0.5 * float(trace.sel(block="dense1")[0])

# %% [markdown]
# H_W goes the other way. The input of the first block is the images, which never change, so the fall of its trace
# is due to its sigmoids alone: they leave the steep middle, where their slope is 1/4, and saturate. And the trace
# of the last block falls because its softmax becomes sure of itself: less and less is asked.
#
# ## What this does not show
#
# - One seed, one network, one optimizer. With tanh, ReLU, skips or normalization the story is another; it takes a
#   change of one line to see it.
# - The displacements fall in the end also because the loss does. That is why the first figure shows a ratio.
# - 64 images and, of H_z, four samples of them.
# - What came first and what caused what is not settled by curves that rise together.
