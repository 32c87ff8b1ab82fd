# %% [markdown]
# # A first look, in five minutes
#
# A network is a chain of blocks. Back-propagation hands every block a small problem of its own: *move your output
# a little this way*. The curvature of that small problem, by the block's weights (**H_W**) and by its input
# (**H_z**), is the block's *local Hessian*, and its condition number tells how hard the problem is for gradient
# descent.
#
# Here we take a network, look at all of its blocks, and then check on one of them that the number means what it
# promises.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import localhessian as lh
from localhessian.lab import digits

# %% [markdown]
# ## My network
#
# Any function of parameters and inputs will do. `lh.mark` says where a block ends; it changes nothing else. The
# data are 8 x 8 images of digits that come with the library.


# %%
def network(params, x):
    h = lh.mark(jax.nn.relu(x @ params["W1"] + params["b1"]), "hidden1")
    h = lh.mark(jax.nn.relu(h @ params["W2"] + params["b2"]), "hidden2")
    return h @ params["W3"] + params["b3"]


widths = [64, 32, 32, 10]
keys = jax.random.split(jax.random.key(0), 3)
initial = {f"b{i}": jnp.zeros(widths[i]) for i in (1, 2, 3)}
for i in (1, 2, 3):
    initial[f"W{i}"] = jax.random.normal(keys[i - 1], (widths[i - 1], widths[i])) * (2 / widths[i - 1]) ** 0.5

data = digits()
x, y = jnp.asarray(data.train_x.reshape(-1, 64)), jnp.asarray(data.train_y)
loss = optax.softmax_cross_entropy_with_integer_labels  # one loss for each sample

# %% [markdown]
# Cut it, and ask. A batch of 256 images is enough for a first look.

# %%
chain, params, context = lh.chain_from_function(network, initial, x[:256])
before = lh.analyze(chain, params, x[:256], y[:256], loss, context)
print(before)

# %% [markdown]
# Read a line from left to right: the block; the side; how many directions have any curvature (`rank/size`); the
# largest eigenvalue over the smallest one that is not zero (`kappa_plus`); and over the 5 % quantile of those
# that are not zero (`kappa_q05`), which does not hang on one unlucky direction.
#
# ## Train it, and look again
#
# Four hundred steps of Adam, and the same question. In a notebook a report shows itself: table, a small spectrum
# in each row, figure, and findings in words.

# %%
optimizer = optax.adam(3e-3)


@jax.jit
def train_step(params, state, key):
    batch = jax.random.randint(key, (64,), 0, len(x))
    gradient = jax.grad(lambda params: loss(network(params, x[batch]), y[batch]).mean())(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state


trained, state = initial, optimizer.init(initial)
for key in jax.random.split(jax.random.key(1), 400):
    trained, state = train_step(trained, state, key)

accuracy = (network(trained, data.test_x.reshape(-1, 64)).argmax(1) == data.test_y).mean()
print(f"test accuracy {100 * accuracy:.1f} %")

# %%
params = chain.split(trained)
after = lh.analyze(chain, params, x[:256], y[:256], loss, context)
after

# %% [markdown]
# One thing catches the eye: the last block. Its task comes from the softmax, and a softmax that is sure of its
# answer asks for nothing. So the better the network knows its digits, the worse conditioned its last block
# becomes:

# %%
for side in ("params", "input"):
    told = [report["output", side].kappa_q05 for report in (before, after)]
    print(f"output, by its {side}: kappa_q05 {told[0]:.3g} before training, {told[1]:.3g} after")
    assert told[1] > 10 * told[0]
assert accuracy > 0.9

# %% [markdown]
# ## What a condition number says
#
# Take `hidden2`, and let gradient descent work on its small problem alone. Along each eigenvector of H_W the
# error shrinks by a constant factor per step. With half of the step that the steepest direction allows, a
# direction whose curvature is kappa times smaller needs about 2 kappa steps to lose 63 % of its error. That is
# all a condition number is: **the number of steps that the flattest direction needs when the steepest one sets
# the pace.** We run the descent and count. (Where a measured curve has a kink, a ReLU has switched on or off on
# the way.)

# %%
matching = lh.back_match(chain, params, x[:256], y[:256], loss, context)
eigenvalues, eigenvectors = np.linalg.eigh(np.asarray(lh.local_hessian(matching, "hidden2").to_dense(), np.float64))
largest = eigenvalues[-1]
ratios = np.array([1, 10, 100, 1000, 10_000])
chosen = [int(np.abs(eigenvalues - largest / ratio).argmin()) for ratio in ratios]

flat, unflatten = jax.flatten_util.ravel_pytree(params["hidden2"])
small_problem = lh.back_matching_loss(matching, "hidden2")
gradient = jax.grad(lambda flat: small_problem(unflatten(flat), matching.activations[1]))
directions = jnp.asarray(eigenvectors[:, chosen].T, jnp.float32)


def descend(flat, _):
    slope = gradient(flat)
    return flat - 0.5 / largest * slope, directions @ slope


_, slopes = jax.lax.scan(descend, flat, length=25_000)
left = np.abs(slopes / slopes[0])  # of the error along each direction
measured = (left < np.exp(-1)).argmax(0)
predicted = 1 / -np.log1p(-0.5 * eigenvalues[chosen] / largest)
for ratio, steps, promise in zip(ratios, measured, predicted, strict=True):
    print(f"curvature {ratio:>6} times smaller: {promise:8.0f} steps predicted, {steps:6} measured")
assert np.allclose(measured[1:], predicted[1:], rtol=0.25)  # ReLUs that switch on the way change the problem

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
steps = np.unique(np.geomspace(1, len(left), 300).astype(int)) - 1
for j, ratio in enumerate(ratios):
    line = ax.semilogx(steps + 1, left[steps, j], lw=3, alpha=0.5, label=f"{ratio:,}")[0]
    ax.semilogx(steps + 1, (1 - 0.5 * eigenvalues[chosen[j]] / largest) ** steps, "--", color=line.get_color())
ax.axhline(np.exp(-1), color="gray", lw=0.8)
ax.set(xlabel="steps of gradient descent on the block's own problem", ylabel="error left along the eigenvector")
ax.legend(title="$\\lambda_{max}/\\lambda$", frameon=False)
ax.set_title("broad: measured; dashed: predicted from the eigenvalue")
plt.show()

# %% [markdown]
# ## What it does not say
#
# Look at `rank/size` once more. Of H_z of `hidden1` only a part is there at all: a ReLU that is off passes
# nothing back. `kappa_plus` speaks of the directions that are left, and looks the better the fewer they are.

# %%
row = after["hidden1", "input"]
print(f"hidden1, by its input: kappa_plus {row.kappa_plus:.3g} on {row.rank:.0f} of {row.size} directions")
assert row.rank < row.size / 2
assert row.kappa_plus < 30

# %% [markdown]
# So read the two together: a small condition number on a third of the space is not a well conditioned block.
#
# ## What this does not show
#
# - One seed, one batch, one small network: these are observations.
# - A block's own problem is not the network's. Local Hessians leave out how strongly the loss depends on a block,
#   and they are not the diagonal blocks of the Hessian of the loss.
# - The count of steps is for plain gradient descent on a problem that stands still. In training the problem moves
#   with every step, and Adam has another idea of distance. Whether better conditioned blocks train faster is a
#   question for notebooks 5 and 6, and the answer is not simply yes.
