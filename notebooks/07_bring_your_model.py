# %% [markdown]
# # Bring your model
#
# localhessian works on a chain of blocks. Your model need not be written that way: say where blocks end, and it
# is cut there. First one network in five libraries, then three networks that are not plain chains of layers: a
# PINN, low-rank adapters on frozen weights (LoRA), and an embedding that is used twice.

# %%
import itertools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import localhessian as lh

SIZES = [8, 16, 16, 4]
keys = jax.random.split(jax.random.key(0), 5)
kernels = [jax.random.normal(keys[i], (SIZES[i], SIZES[i + 1])) / SIZES[i] ** 0.5 for i in range(3)]
biases = [0.1 * jnp.arange(size) / size for size in SIZES[1:]]
x, y = jax.random.normal(keys[3], (64, 8)), jax.random.randint(keys[4], (64,), 0, 4)
loss = optax.softmax_cross_entropy_with_integer_labels  # one loss for each sample


def look(cut):
    """The condition number of H_W, over its 5 % quantile, of each block."""
    report = lh.analyze(cut.chain, cut.params, x, y, loss, cut.context, wrt="params")
    return cut.chain.names, np.array([row.kappa_q05 for row in report])


found = {}

# %% [markdown]
# ## One network, five libraries
#
# **Plain JAX.** `lh.mark` where a block ends.


# %%
def plain(params, x):
    for i in (0, 1):
        x = lh.mark(jnp.tanh(x @ params["kernels"][i] + params["biases"][i]), f"hidden{i}")
    return x @ params["kernels"][2] + params["biases"][2]


found["plain JAX"] = look(lh.chain_from_function(plain, {"kernels": kernels, "biases": biases}, x))


# %% [markdown]
# **Flax nnx.** Nothing is edited: each layer, with the activation that follows it, is a block. `at=` says
# otherwise.


# %%
class Network(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(SIZES)])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


model = Network(nnx.Rngs(0))
for layer, kernel, bias in zip(model.layers, kernels, biases, strict=True):
    layer.kernel[...], layer.bias[...] = kernel, bias
found["flax nnx"] = look(lh.chain_from_nnx(model, x))


# %% [markdown]
# **Flax linen.**


# %%
class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x):
        for size in SIZES[1:-1]:
            x = jnp.tanh(nn.Dense(size)(x))
        return nn.Dense(SIZES[-1])(x)


arrays = zip(kernels, biases, strict=True)
variables = {"params": {f"Dense_{i}": {"kernel": kernel, "bias": bias} for i, (kernel, bias) in enumerate(arrays)}}
found["flax linen"] = look(lh.chain_from_linen(LinenNetwork(), variables, x))

# %% [markdown]
# **Equinox.** Its modules act on one sample; the model is mapped over the batch.

# %%
mlp = eqx.nn.MLP(8, 4, width_size=16, depth=2, activation=jnp.tanh, key=jax.random.key(0))
arrays = [array for kernel, bias in zip(kernels, biases, strict=True) for array in (kernel.T, bias)]
mlp = eqx.tree_at(lambda mlp: [array for layer in mlp.layers for array in (layer.weight, layer.bias)], mlp, arrays)
found["equinox"] = look(lh.chain_from_equinox(mlp, x))

# %% [markdown]
# **Haiku** has no door of its own, and needs none: its layers are `jax.named_scope`s, and `at=` cuts where they
# end. (That is before the activations here, so the blocks are cut elsewhere.)


# %%
def forward(x):
    return hk.nets.MLP(SIZES[1:], activation=jnp.tanh)(x)


network = hk.without_apply_rng(hk.transform(forward))
cut = lh.chain_from_function(network.apply, network.init(jax.random.key(0), x), x, at="**.linear_*")
print("haiku:", ", ".join(cut.chain.names))
assert len(cut.chain) == 3

# %%
for library, (names, values) in found.items():
    print(f"{library:10} {', '.join(names):30} {np.array2string(values, precision=5)}")
truth = found["plain JAX"][1]
assert all(np.allclose(values, truth, rtol=1e-3) for _, values in found.values())

# %% [markdown]
# The names differ, the numbers agree: **conditioning belongs to the network, not to the library.**
#
# ## A PINN: when the loss wants derivatives
#
# A network u(x) shall solve -u'' = f. The loss needs u'' by the *input*, which no layer returns. But a layer can
# pass on three things, (u, u', u''), by the chain rule, and then it is a block like any other: what crosses a
# boundary may be any pytree.


# %%
def first(params, x):
    return layer((x, jnp.ones_like(x), jnp.zeros_like(x)), params)


def hidden(params, jet):
    return layer(jet, params)


def layer(jet, params):
    u, du, ddu = jet
    t = jnp.tanh(u @ params["kernel"] + params["bias"])
    slope, da, dda = 1 - t**2, du @ params["kernel"], ddu @ params["kernel"]
    return t, slope * da, slope * dda - 2 * t * slope * da**2


def last(params, jet):
    return tuple(part @ params["kernel"] for part in jet)


chain = lh.Chain([lh.Block("first", first), lh.Block("hidden", hidden), lh.Block("last", last)])
keys = jax.random.split(jax.random.key(1), 4)
params = {
    "first": {"kernel": 2 * jax.random.normal(keys[0], (1, 16)), "bias": jax.random.uniform(keys[1], (16,))},
    "hidden": {"kernel": jax.random.normal(keys[2], (16, 16)) / 4, "bias": jnp.zeros(16)},
    "last": {"kernel": jax.random.normal(keys[3], (16, 1)) / 4},
}
points = jnp.linspace(0, 1, 64)[:, None]
solution = jnp.sin(3 * jnp.pi * points)
source = (3 * jnp.pi) ** 2 * solution


def residual_loss(jet, f):
    u, _, ddu = jet
    at_edge = jnp.isin(jnp.arange(64), jnp.array([0, 63]))
    return jnp.where(at_edge, 50 * u[:, 0] ** 2, 0.5 * (ddu + f)[:, 0] ** 2)


def regression_loss(jet, u):
    return 0.5 * (jet[0] - u)[:, 0] ** 2


# %% [markdown]
# Is it right? Autodiff of the plain network is the judge.


# %%
def u(params, at):
    h = jnp.tanh(at * params["first"]["kernel"][0] + params["first"]["bias"])
    h = jnp.tanh(h @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return (h @ params["last"]["kernel"])[0]


second = jax.vmap(jax.grad(jax.grad(u, 1), 1), (None, 0))(params, points[:, 0])
assert np.allclose(chain.forward(params, points)[-1][2][:, 0], second, rtol=1e-3, atol=1e-3)

# %% [markdown]
# Now the same network as one that is merely asked for its *values*, and as one that is asked for u, u' and u'':


# %%
def values_only(block):
    """The block of an ordinary network."""
    return lambda params, u: block(params, (u, jnp.zeros_like(u), jnp.zeros_like(u)))[0]


ordinary = lh.Chain(
    [
        lh.Block("first", values_only(hidden)),
        lh.Block("hidden", values_only(hidden)),
        lh.Block("last", values_only(last)),
    ]
)
regression = lh.analyze(ordinary, params, points, solution, lambda u, y: 0.5 * ((u - y) ** 2)[:, 0], wrt="params")
pinn = lh.analyze(chain, params, points, source, residual_loss, wrt="params")
for name in chain.names:
    plainly, asked = (report[name, "params"].lambda_max for report in (regression, pinn))
    times = f"{asked / plainly:.0f} times"
    print(f"{name:7} lambda_max of H_W: {plainly:5.3g} for u alone, {asked:5.3g} with u' and u'', {times}")
    assert asked > 5 * plainly

# %% [markdown]
# **Whoever asks a network for its second derivative makes the problem of every block several times steeper**, and
# the steps that gradient descent may take smaller by as much, before a single equation is solved.
#
# ## LoRA: frozen weights
#
# A low-rank adapter learns A and B in W + AB, while W stays. What is frozen is no parameter: it goes into the
# *context*, and no Hessian is taken by it. Adapters begin with B = 0, so that the network at first is the old
# one.


# %%
def adapted(params, z, frozen):
    return jnp.tanh(z @ (frozen + params["A"] @ params["B"]))


chain = lh.Chain([lh.Block("one", adapted), lh.Block("two", adapted)])
keys = jax.random.split(jax.random.key(2), 4)
frozen = jax.random.normal(keys[0], (16, 16)) / 4
x, y = jax.random.normal(keys[1], (2, 64, 16))


def squared_error(z, y):
    return 0.5 * ((z - y) ** 2).sum(1)


for b_scale in (0.0, 0.3):
    adapter = {
        "A": jax.random.normal(keys[2], (16, 2)) / 4,
        "B": b_scale * jax.random.normal(keys[3], (2, 16)),
    }
    row = lh.analyze(chain, {"one": adapter, "two": adapter}, x, y, squared_error, frozen, blocks="one", wrt="params")[
        "one", "params"
    ]
    print(f"B of size {b_scale}: rank of H_W {row.rank:.0f} of {row.size}")
    assert row.rank == (32 if b_scale == 0 else 60)

# %% [markdown]
# **At its start an adapter is half deaf:** with B = 0 the output does not depend on A at all, so H_W is zero in
# every direction of A, and the first step moves B alone. Later all but four directions count: AB stays the same
# if A is multiplied by any 2 x 2 matrix and B by its inverse, and 2 x 2 is four.
#
# ## Tied embeddings: one array, two questions
#
# A language model reads words by a table and often writes them by the same one. The array is in two blocks, and
# each has a local Hessian of its own use; gradients add up.

# %%
WORDS, WIDTH = 12, 8


def language_model(params, words):
    z = lh.mark(params["table"][words], "read")
    z = lh.mark(z + jnp.tanh(z @ params["mix"]), "mix")
    return z @ params["table"].T


def next_word(logits, words):
    return optax.softmax_cross_entropy_with_integer_labels(logits, words).mean(1)


frequency = 1.0 / np.arange(1, WORDS + 1)  # Zipf's law
words = jax.random.choice(jax.random.key(3), WORDS, (32, 17), p=jnp.asarray(frequency / frequency.sum()))
keys = jax.random.split(jax.random.key(4), 2)
model = {
    "table": jax.random.normal(keys[0], (WORDS, WIDTH)) / WIDTH**0.5,
    "mix": jax.random.normal(keys[1], (WIDTH, WIDTH)) / WIDTH**0.5,
}
chain, params, context = lh.chain_from_function(language_model, model, words[:, :-1])
matching = lh.back_match(chain, params, words[:, :-1], words[:, 1:], next_word, context)
gradient = chain.merge(matching.gradients, tied="sum")["table"]
truth = jax.grad(lambda model: next_word(language_model(model, words[:, :-1]), words[:, 1:]).mean())(model)["table"]
assert np.allclose(gradient, truth, atol=1e-6)

# %%
counts = np.bincount(np.asarray(words[:, :-1]).ravel(), minlength=WORDS) / len(words)
spectrum = lh.spectrum(lh.local_hessian(matching, "read"))
eigenvalues = np.repeat(np.asarray(spectrum.eigenvalues), np.asarray(spectrum.multiplicities))
assert np.allclose(np.sort(eigenvalues), np.sort(np.repeat(counts, WIDTH)), rtol=1e-4)

written = lh.spectrum(lh.local_hessian(matching, chain.names[-1]))
kappa = [lh.condition_number(one) for one in (spectrum, written)]
print(f"as a table to read:  kappa_plus {float(kappa[0].value):.3g}, rank {int(kappa[0].rank)} of {WORDS * WIDTH}")
print(f"as a table to write: kappa_plus {float(kappa[1].value):.3g}, rank {int(kappa[1].rank)} of {WORDS * WIDTH}")
assert np.isclose(float(kappa[0].value), counts.max() / counts.min(), rtol=1e-3)
assert int(kappa[1].rank) == (WORDS - 1) * WIDTH

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
ax.semilogy(np.sort(eigenvalues)[::-1], label="to read: how often each word occurs, once for each of its numbers")
values = np.sort(np.repeat(np.asarray(written.eigenvalues), np.asarray(written.multiplicities)))[::-1]
ax.semilogy(values[: (WORDS - 1) * WIDTH], label="to write: the softmax (one direction in twelve is zero)")
ax.set(xlabel="eigenvalue of $H_W$, from the largest", ylabel="$\\lambda$")
ax.legend(frameon=False, loc="lower left", fontsize=8)
ax.grid(alpha=0.3)
plt.show()

# %% [markdown]
# **The condition number of an embedding is how unequal its words are**: the eigenvalues are the counts of the
# words, and nothing else. With Zipf's law and a real vocabulary that is a large number, whatever the network
# above does.
#
# ## What this does not show
#
# - Tiny random networks, untrained: the recipes scale, the numbers do not.
# - A local Hessian of a tied array is of one use. The curvature by the shared array also has what the uses have
#   in common.
# - A PINN's blocks are steeper when u' and u'' are passed on with weights of one, as here; other weights of the
#   three parts give other local Hessians. The loss knows what it needs, the blocks in the middle do not.
