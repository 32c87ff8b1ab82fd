# %% [markdown]
# # Training by curvature: scale-amended SGD and back-matching solvers, fairly compared
#
# Back-propagation solves every block's small problem by one plain gradient step. Once the curvature is known one
# can do more: divide the step by a scalar for the local Hessian (*scale-amended SGD*), or solve the block's
# problem better, by damped Gauss-Newton steps on its weights and on its input (*back-matching*). Does it pay? The
# answer depends on the network, and on being fair.
#
# Fair means: every algorithm tries the same number of learning rates on images set aside, then runs on the same
# five seeds, and the test images are seen by the final runs alone. `localhessian.lab.compare` does just that.

# %%
import tempfile

import matplotlib.pyplot as plt

from localhessian.lab import Plan, algorithm, compare, digits, network

data = digits().take(900, 360)
plan = Plan(steps=120, batch=32, seeds=5, trials=6, tuning_seeds=1, evaluations=6)
algorithms = [algorithm(name) for name in ("momentum", "adam", "scale-amended", "back-matching")]
networks = [network(name, data, width=16) for name in ("tanh-2", "sigmoid-4")]

with tempfile.TemporaryDirectory() as folder:
    study = compare(networks, algorithms, data, plan, out=folder)
    outcomes = {(outcome.network, outcome.algorithm): outcome for outcome in study.outcomes()}

# %% [markdown]
# Two networks: an easy one with two hidden layers of tanh, and one with four of sigmoids, which notebook 5 showed
# to be nearly deaf in the beginning. `gain` is the difference to the first algorithm, seed by seed, with a 95 %
# interval; `cost` is the time of a step, without compilation, over that of the first.

# %%
print("network    algorithm       rate     accuracy %, 95 % interval    gain in points            cost of a step")
for (of_network, name), outcome in outcomes.items():
    mean = outcome.accuracy
    gain = outcome.gain
    told = f"{100 * gain.mean:+6.1f} [{100 * gain.low:+6.1f}, {100 * gain.high:+6.1f}]" if gain else "-".center(24)
    rate = f"{outcome.tuned.learning_rate:.3g}{'*' if outcome.tuned.at_edge else ''}"
    interval = f"{100 * mean.mean:5.1f} [{100 * mean.low:5.1f}, {100 * mean.high:5.1f}]"
    print(f"{of_network:10} {name:14} {rate:8} {interval:>25}    {told}   {outcome.cost:10.1f}")
print("*: the best rate is at the edge of the grid, a better one may lie outside")

# %%
fig, panels = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
for ax, of_network in zip(panels, ("tanh-2", "sigmoid-4"), strict=True):
    for place, one in enumerate(algorithms):
        outcome = outcomes[of_network, one.name]
        mean, low, high = (
            100 * value for value in (outcome.accuracy.mean, outcome.accuracy.low, outcome.accuracy.high)
        )
        ax.errorbar(place, mean, yerr=[[mean - low], [high - mean]], fmt="o", capsize=4)
    ax.set_xticks(range(4), [one.name for one in algorithms], rotation=20)
    ax.set_title(of_network)
    ax.axhline(10, color="gray", lw=0.8, ls=":")
    ax.grid(axis="y", alpha=0.3)
panels[0].set_ylabel("test accuracy in %, 5 seeds")
plt.show()

# %% [markdown]
# **Where plain SGD trains, nothing is gained.** On the easy network every interval of a gain comes within two
# points of zero or contains it: with tuned rates, four very different algorithms end in the same place.

# %%
for name in ("adam", "scale-amended", "back-matching"):
    gain = outcomes["tanh-2", name].gain
    assert gain.low < 0.02
    assert gain.high > -0.02

# %% [markdown]
# **Where SGD is deaf, solving the blocks' own problems is worth everything.** Momentum does not leave chance in
# these 120 steps; back-matching trains the network, and is ahead of Adam. A likely reason: its solves by the
# input divide by the curvature, so that what is asked of a block is not shrunk on the way down as it was in
# notebook 5.

# %%
momentum, back_matching = outcomes["sigmoid-4", "momentum"], outcomes["sigmoid-4", "back-matching"]
assert momentum.accuracy.high < 0.25
assert back_matching.accuracy.low > 0.7
assert back_matching.accuracy.low > outcomes["sigmoid-4", "adam"].accuracy.high
assert outcomes["sigmoid-4", "scale-amended"].gain.low > 0

# %% [markdown]
# ## Equal steps are not equal time
#
# A step of back-matching does more, as the last column of the table says. So let Adam have four times as many
# steps, with its rate tuned anew:

# %%
longer = Plan(steps=480, batch=32, seeds=5, trials=6, tuning_seeds=1, evaluations=6)
with tempfile.TemporaryDirectory() as folder:
    (patient,) = compare(networks[1:], [algorithm("adam")], data, longer, out=folder).outcomes()
for told, outcome in (("adam, 480 steps", patient), ("back-matching, 120 steps", back_matching)):
    mean = outcome.accuracy
    print(f"{told:24} {100 * mean.mean:5.1f} % [{100 * mean.low:5.1f}, {100 * mean.high:5.1f}]")
assert patient.accuracy.mean > 0.8
assert patient.accuracy.high > back_matching.accuracy.low

# %% [markdown]
# Given the time, Adam arrives too. **Per step the gain is large, per second it is small or gone.**
#
# ## What this does not show
#
# - 900 small images, 120 steps, width 16. The intervals are over seeds: they do not cover the choice of data,
#   network or budget. `localhessian train` runs the same comparison at any size, and keeps what is finished.
# - `cost` is a wall clock on one machine, and differs from one to the next.
# - Back-matching has a second setting, the damping of the solves by the input. It was chosen on digits like
#   these, so the comparison is kind to it.
# - Which property of the blocks decides is not shown. That a *condition number* predicts the winner is not
#   claimed.
