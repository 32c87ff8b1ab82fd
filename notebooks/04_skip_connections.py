# %% [markdown]
# # Skip connections: ε, the bound, and what is really there
#
# For a block z + φ(z) there is a pretty theorem. If φ stretches nothing by more than ε < 1, then
#
# $$\kappa(H_z) \le \left(\frac{1+\varepsilon}{1-\varepsilon}\right)^2 .$$
#
# A weak branch gives a well conditioned block, at any depth. But is ε < 1 in a network that one would train? The
# theorem's reviewers doubted it. Let us measure ε, the bound and κ side by side.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import localhessian as lh
from localhessian.lab import digits, digits_network

WIDTH, DEPTH, SAMPLES = 32, 6, 32


# %% [markdown]
# ## A branch of any strength
#
# Six equal layers. The branch is a ReLU layer with He's initialization, times a strength that we choose; with the
# skip around it, or without. (The strength is the chain's *context*: what is no parameter. So one compiled
# program serves all.)


# %%
def branch(w, z, strength):
    return strength * jax.nn.relu(z @ w)


def with_skip(w, z, strength):
    return z + branch(w, z, strength)


def squared_error(z, y):
    return 0.5 * ((z - y) ** 2).sum(1)


names = [f"layer{i}" for i in range(1, DEPTH + 1)]
keys = jax.random.split(jax.random.key(0), DEPTH + 1)
params = {
    name: jax.random.normal(key, (WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5 for name, key in zip(names, keys, strict=False)
}
x, y = jax.random.normal(keys[-1], (2, SAMPLES, WIDTH))


@jax.jit
def stretch(w, z, strength):
    """The largest singular value of the branch's Jacobian, of each sample."""
    of_one = jax.jacfwd(lambda row: branch(w, row, strength))
    return jnp.linalg.norm(jax.vmap(of_one)(z), 2, axis=(1, 2))


def look(block, strength, layer=3):
    """Of one layer ε, kappa_plus and rank of each sample; and how much of a displacement arrives at the first."""
    chain = lh.Chain([lh.Block(name, block) for name in names])
    matching = lh.back_match(chain, params, x, y, squared_error, jnp.asarray(strength))
    name = names[layer]
    kappa = lh.condition_number(lh.spectrum(lh.local_hessian(matching, name, "input", samples=range(SAMPLES))))
    asked = [jnp.linalg.norm(r) for r in matching.residuals[1:]]
    epsilon = stretch(params[name], matching.activations[layer], strength)
    return np.asarray(epsilon), np.asarray(kappa.value), np.asarray(kappa.rank), float(asked[0] / asked[-1])


STRENGTHS = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5]
skips = {strength: look(with_skip, strength) for strength in STRENGTHS}
plains = {strength: look(branch, strength) for strength in STRENGTHS}

# %%
print("strength     eps   bound   kappa with skip (rank)   kappa without (rank)   signal with skip   without")
for strength in STRENGTHS:
    (epsilon, kappa, rank, signal), (_, bare, bare_rank, bare_signal) = skips[strength], plains[strength]
    worst = np.median(epsilon)
    bound = f"{((1 + worst) / (1 - worst)) ** 2:7.3g}" if worst < 1 else "   none"
    print(
        f"{strength:8.2f} {worst:7.2f} {bound} {np.median(kappa):14.3g} {np.median(rank):6.0f}/{WIDTH}"
        f" {np.median(bare):15.3g} {np.median(bare_rank):6.1f}/{WIDTH} {signal:17.2g} {bare_signal:9.1g}"
    )

# %%
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
all_epsilon = np.concatenate([skips[strength][0] for strength in STRENGTHS])
all_kappa = np.concatenate([skips[strength][1] for strength in STRENGTHS])
curve = np.linspace(0.01, 0.985, 200)
ax.loglog(curve, ((1 + curve) / (1 - curve)) ** 2, color="gray", label="the bound")
ax.loglog(all_epsilon, all_kappa, ".", ms=4, label="with skip: every sample, every strength")
bare_epsilon = np.concatenate([plains[strength][0] for strength in STRENGTHS])
bare_kappa = np.concatenate([plains[strength][1] for strength in STRENGTHS])
ax.loglog(bare_epsilon, bare_kappa, ".", ms=4, alpha=0.5, label="without skip (on half of the directions)")
ax.axvline(1, color="gray", lw=0.8, ls=":")
ax.set(xlabel="$\\varepsilon = \\|\\partial\\varphi/\\partial z\\|_2$ of the sample", ylabel="$\\kappa^+$ of its $H_z$")
ax.set_ylim(0.9, 1e7)
ax.legend(frameon=False, loc="upper left")
ax.grid(alpha=0.3)
plt.show()

# %% [markdown]
# Left of ε = 1 the theorem holds for every single sample, and it is not sharp: it fears that one direction is
# stretched as far as it goes while another is shrunk as far as it goes, and that does not happen here.

# %%
weak = all_epsilon < 0.98
bound = ((1 + all_epsilon[weak]) / (1 - all_epsilon[weak])) ** 2
assert weak.sum() >= 5 * SAMPLES
assert (all_kappa[weak] <= bound * 1.001).all()

# %% [markdown]
# **But a branch of full strength has ε above 1, and no bound at all.** There the skip gives a *worse* condition
# number than the plain layer has, and still it does something that a plain ReLU layer cannot: all directions
# arrive. The plain layer loses half of them, and its `kappa_plus` speaks of the rest only. **What the skip bought
# every time is rank. Conditioning it buys only when the branch is weak.**

# %%
epsilon, kappa, rank, signal = skips[1.0]
_, bare, bare_rank, bare_signal = plains[1.0]
assert epsilon.min() > 1
assert np.median(kappa) > np.median(bare)
assert all((ranks == WIDTH).all() for _, _, ranks, _ in skips.values())
assert np.median(bare_rank) < 0.7 * WIDTH
assert np.median(skips[0.1][1]) < np.median(bare)

# %% [markdown]
# The last two columns of the table tell the other half of the story. A weak plain layer has the same condition
# number as a strong one, but after six of them nothing of the signal is left; a weak skip passes it on unchanged.

# %%
assert plains[0.1][3] < 1e-3
assert 0.9 < skips[0.1][3] < 1.5

# %% [markdown]
# ## In a network that is trained
#
# A small convolutional network with skips, on the digits: stem, three blocks z + relu(conv(z)), head. Its blocks
# are measured before and after training; ε from the Jacobian of block(z) - z, of eight samples.

# %%
data = digits()
images, labels = jnp.asarray(data.train_x), jnp.asarray(data.train_y)
loss = optax.softmax_cross_entropy_with_integer_labels
network, initial = digits_network("skip", jax.random.key(1), depth=4, width=8)
optimizer = optax.adam(1e-2)


@jax.jit
def train_step(params, state, key):
    batch = jax.random.randint(key, (64,), 0, len(images))
    objective = lambda params: loss(network.forward(params, images[batch])[-1], labels[batch]).mean()
    updates, state = optimizer.update(jax.grad(objective)(params), state)
    return optax.apply_updates(params, updates), state


trained, state = initial, optimizer.init(initial)
for key in jax.random.split(jax.random.key(2), 250):
    trained, state = train_step(trained, state, key)
accuracy = (network.forward(trained, data.test_x)[-1].argmax(1) == data.test_y).mean()
print(f"test accuracy {100 * accuracy:.1f} %")
assert accuracy > 0.85

few = images[:8]
block = network.blocks[1].apply  # all three are the same function


@jax.jit
def stretch_of(params, z):
    of_one = lambda image: (block(params, image.reshape(1, *z.shape[1:])) - image.reshape(1, *z.shape[1:])).ravel()
    return jnp.linalg.norm(jax.vmap(jax.jacfwd(of_one))(z.reshape(len(z), -1)), 2, axis=(1, 2))


print("                      eps   bound   kappa_plus   rank")
found = {}
for stage, params in (("before", initial), ("after", trained)):
    report = lh.analyze(network, params, few, labels[:8], loss, blocks=["conv2", "conv3", "conv4"], wrt="input")
    for i, row in enumerate(report, 1):
        epsilon = float(jnp.median(stretch_of(params[row.block], network.forward(params, few)[i])))
        bound = f"{((1 + epsilon) / (1 - epsilon)) ** 2:7.3g}" if epsilon < 1 else "   none"
        where = f"{stage:6} training, {row.block}"
        print(f"{where} {epsilon:5.2f} {bound} {row.kappa_plus:12.3g}   {row.rank:.0f}/{row.size}")
        found[stage, row.block] = epsilon, row.kappa_plus, row.rank / row.size

# %% [markdown]
# At He's initialization, which is what people use, **the assumption of the theorem fails in every block**, and
# training takes ε up further. Yet all directions are there, and the condition numbers are finite. The theorem
# explains networks with weak branches (scaled down with depth, or started at zero). Whatever helps the others, it
# is not this bound.

# %%
assert all(epsilon > 1 for epsilon, _, _ in found.values())
assert all(share == 1 for _, _, share in found.values())
assert all(found["after", name][0] > found["before", name][0] for name in ("conv2", "conv3", "conv4"))

# %% [markdown]
# ## What this does not show
#
# - ε and κ are of single samples, at one initialization and after one short training.
# - Per block. What the product of many blocks does to a signal is in the last columns of the first table only.
# - Equal sizes and no activation after the sum. A block that changes the width, or ends in relu(z + φ(z)), is not
#   covered.
# - Nothing here says that networks with skips train faster *because* of κ. They also pass the signal on, as seen.
