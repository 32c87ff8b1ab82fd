# %% [markdown]
# # Batch normalization: what it repairs, and the directions it makes flat
#
# Batch normalization subtracts each feature's mean over the batch and divides by its deviation. Two things about
# it can be seen in local Hessians, one good and one odd. We look at both, in float64, so that nothing here is
# rounding.

# %%
import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import localhessian as lh
from localhessian.lab import digits

# %% [markdown]
# ## The good: C before and after
#
# A linear layer has H_W = C for each of its units, where C is the second moment of the layer's *inputs*: the
# condition number of H_W is in the data. Take the digits, and spoil them as layers do: every feature gets a unit
# and an offset of its own. (Pixels that are nearly constant are left out.)

# %%
rng = np.random.default_rng(0)
images = digits().train_x[:512].reshape(512, -1)
images = images[:, images.std(0) > 0.3]
features = images.shape[1]
spoiled = jnp.asarray((images + rng.normal(size=features)) * 10 ** rng.uniform(-1, 1, features))


def batch_norm(z, epsilon=1e-5):
    return (z - z.mean(0, keepdims=True)) / jnp.sqrt(z.var(0, keepdims=True) + epsilon)


def squared_error(z, y):
    return 0.5 * ((z - y) ** 2).sum(1)


chain = lh.Chain([lh.Block("linear", lambda w, z: z @ w), lh.Block("head", lambda w, z: z @ w)])
weights = jax.random.normal(jax.random.key(0), (features, 12)) / features**0.5
params = {"linear": weights, "head": jnp.ones((12, 3))}
y = jnp.zeros((512, 3))


def spectrum_of_linear(inputs):
    return lh.spectrum(lh.local_hessian(lh.back_match(chain, params, inputs, y, squared_error), "linear"))


inputs = {
    "spoiled": spoiled,
    "only centered": spoiled - spoiled.mean(0),
    "batch norm": batch_norm(spoiled),
    "batch norm, then ReLU": jax.nn.relu(batch_norm(spoiled)),
}
spectra = {name: spectrum_of_linear(z) for name, z in inputs.items()}
kappas = {name: float(lh.condition_number(spectrum).value) for name, spectrum in spectra.items()}
for name, z in inputs.items():
    C = z.T @ z / len(z)
    diagonal = jnp.diagonal(C)
    assert np.isclose(kappas[name], jnp.linalg.cond(C), rtol=1e-6)  # H_W is C, once for each unit
    spread = float(diagonal.max() / diagonal.min())
    print(f"{name:22} kappa(H_W) {kappas[name]:9.3g}   diagonal of C, largest / smallest {spread:8.3g}")

# %%
fig, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
for name, spectrum in spectra.items():
    values = np.sort(np.asarray(spectrum.eigenvalues))[::-1]
    ax.semilogy(np.arange(1, len(values) + 1), values / values[0], label=f"{name}: {kappas[name]:.2g}")
ax.set(xlabel="eigenvalue of $C$, from the largest", ylabel="$\\lambda/\\lambda_{max}$")
ax.legend(title="$\\kappa$ of $H_W$", frameon=False)
ax.grid(alpha=0.3)
plt.show()

# %% [markdown]
# The diagonal of C is constant after batch normalization, and that is all it can do: it *scales*, it does not
# *rotate*. What is left is the correlation of neighboring pixels. But among all diagonal scalings this one is
# close to the best: van der Sluis (1969) showed that a constant diagonal is within a factor of the dimension of
# the best possible.
#
# A ReLU in between takes the constant diagonal away again, and gives every feature a positive mean, which C (it
# is not centered) shows as one eigenvalue that stands out at the top.

# %%
C = inputs["batch norm"].T @ inputs["batch norm"] / 512
assert float(jnp.diagonal(C).max() / jnp.diagonal(C).min()) < 1.01
assert kappas["spoiled"] > 1000 * kappas["batch norm"]
rectified = np.asarray(spectra["batch norm, then ReLU"].eigenvalues)
print(f"after a ReLU: the largest eigenvalue is {rectified[-1] / rectified[-2]:.1f} times the second")
assert rectified[-1] > 2 * rectified[-2]

# %% [markdown]
# ## The odd: a flat direction in every unit
#
# A layer that is followed by batch normalization does not see the length of its weights: normalization divides it
# out. So moving a unit's weights along themselves changes (nearly) nothing. Not exactly nothing, because of the ε
# in the denominator. A line of algebra: that direction's curvature is smaller than without the effect by the
# factor (ε / (var + ε))², where var is the variance of the unit's output. Let us see it.


# %%
def normalized_layer(w, z, epsilon):
    return jax.nn.relu(batch_norm(z @ w, epsilon))


normalized = lh.Chain([lh.Block("layer", normalized_layer), lh.Block("head", lambda w, z: z @ w)])
z = inputs["batch norm"]


def hessian(epsilon):
    case = {"layer": weights, "head": params["head"]}
    return lh.local_hessian(lh.back_match(normalized, case, z, y, squared_error, jnp.asarray(epsilon)), "layer")


unit = 3
along = jnp.zeros_like(weights).at[:, unit].set(weights[:, unit]).ravel()
variance = float((z @ weights)[:, unit].var())
epsilons = 10.0 ** np.arange(-7, 2)
seen, promised = [], []
for epsilon in epsilons:
    seen.append(float(along @ hessian(epsilon).mv(along)))
    on = normalized_layer(weights, z, epsilon)[:, unit]  # what the direction would give, were the length seen
    promised.append(float((on**2).mean()) * (epsilon / (variance + epsilon)) ** 2)
assert np.allclose(seen, promised, rtol=1e-6)

fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
ax.loglog(epsilons, promised, "-", color="gray", label="from $(\\varepsilon/(var+\\varepsilon))^2$")
ax.loglog(epsilons, seen, "o", label="measured: $w^T H_W\\, w$")
ax.set(xlabel="$\\varepsilon$ of batch normalization", ylabel="curvature along a unit's own weights")
ax.legend(frameon=False)
ax.grid(alpha=0.3)
plt.show()

# %% [markdown]
# One such direction for each unit. At the usual ε of 1e-5 their eigenvalues lie many orders of magnitude below
# all others: not zero, and of no use. So the condition number of this layer depends on whether you count them.

# %%
spectrum = lh.spectrum(hessian(1e-5))
values = np.sort(np.repeat(np.asarray(spectrum.eigenvalues), np.asarray(spectrum.multiplicities)))[::-1]
cutoffs = np.geomspace(1e-9, 1e-2, 60)
plus = [float(lh.condition_number(spectrum, rtol=cutoff).value) for cutoff in cutoffs]
counted, ignored = (lh.condition_number(spectrum, rtol=rtol) for rtol in (1e-8, 1e-4))
quantile = float(lh.quantile_condition_number(spectrum, 0.05))
for name, kappa in (("counted", counted), ("ignored", ignored)):
    print(f"{name}: kappa_plus {float(kappa.value):.2g} (rank {int(kappa.rank)})")
print(f"over the 5 % quantile: {quantile:.3g}")

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.semilogy(np.arange(1, len(values) + 1) / len(values), values / values[0])
left.set(xlabel="share of the dimension", ylabel="$\\lambda/\\lambda_{max}$ of $H_W$")
left.set_title("the cliff at the end: one for each unit")
right.loglog(cutoffs, plus, label="$\\kappa^+$")
right.axhline(quantile, color="tab:green", label="$\\lambda_{max}/\\lambda_{5\\%}$")
right.set(xlabel="what counts as zero (singular values, over the largest)", title="what the cutoff does")
right.legend(frameon=False)
for ax in (left, right):
    ax.grid(alpha=0.3)
plt.show()

assert int(counted.rank) == len(values)
assert int(counted.rank) - int(ignored.rank) == weights.shape[1]
assert float(counted.value) > 1e6 * float(ignored.value)

# %% [markdown]
# **Two honest people can report condition numbers of this layer that differ by a factor of millions.** So say
# which cutoff you used (localhessian's is 100 machine epsilons, and the report tells when a result hangs on it),
# and compare networks with batch normalization by the quantile: it does not care, because these directions are
# few.
#
# If the scale γ that follows the normalization is trained too, the direction is flat *exactly*: longer weights
# with a larger ε-correction can always be undone by γ.


# %%
def with_scale(params, z):
    return jax.nn.relu(params["gamma"][None] * batch_norm(z @ params["kernel"]))


chain = lh.Chain([lh.Block("layer", with_scale), lh.Block("head", lambda w, z: z @ w)])
case = {"layer": {"kernel": weights, "gamma": jnp.ones(12)}, "head": params["head"]}
kappa = lh.condition_number(lh.spectrum(lh.local_hessian(lh.back_match(chain, case, z, y, squared_error), "layer")))
size = weights.size + 12
print(
    f"rank {int(kappa.rank)} of {size}: {size - int(kappa.rank)} directions are exactly flat, one for each of 12 units"
)
assert size - int(kappa.rank) == 12

# %% [markdown]
# Does the gradient ever go there? It has no reason to: what changes nothing has no slope.

# %%
slope = lh.back_match(normalized, {"layer": weights, "head": params["head"]}, z, y, squared_error, jnp.asarray(1e-5))
slope = slope.gradients["layer"][:, unit]
cosine = float(slope @ weights[:, unit] / jnp.linalg.norm(slope) / jnp.linalg.norm(weights[:, unit]))
print(f"cosine between a unit's gradient and its weights: {cosine:.1e}")
assert abs(cosine) < 1e-4

# %% [markdown]
# ## What this does not show
#
# - The improvement of C is for *spoiled* inputs and a layer that reads normalized values directly. With a ReLU in
#   between it is smaller, as shown; and how badly scaled the inputs of a layer are in a network of yours is in
#   its report (`kappa_inputs`, `kappa_scaled`).
# - That flat directions harm training: gradient descent hardly moves along them. They disturb condition numbers.
# - Batch normalization also couples the samples of a batch, and does more in training (it lets rates be larger,
#   adds noise). None of that is in C.
