"""Figures of sweeps: what is drawn is what the dataset says, what is not known is drawn as such."""

import numpy as np
import pytest
import xarray
from matplotlib.figure import Figure
from scipy import stats

import localhessian as lh

pytestmark = pytest.mark.once

SCALES = np.logspace(-1, 1, 5)


def dataset():
    """kappa_plus by scale, seed and depth, one unconverged, one infinite, one unknown for every seed."""
    rng = np.random.default_rng(0)
    kappa = 10 ** (1 + rng.random((5, 4, 2)))
    status = np.zeros(kappa.shape, int)
    status[1, :, 0] = lh.Status.RANK_UNCERTAIN
    kappa[2, 0, 0] = np.inf
    kappa[3, :, 1] = np.nan
    dims = ("scale", "seed", "depth")
    data = {"kappa_plus": (dims, kappa), "status": (dims, status)}
    return xarray.Dataset(data, {"scale": SCALES, "seed": range(4), "depth": [1, 2]})


def test_lines_are_geometric_means_with_their_intervals():
    found = dataset()
    ax = lh.plot.sweep(found, x="scale", y="kappa_plus", hue="depth")
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ("log", "log", "scale")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["depth = 1", "depth = 2"]
    values = np.log(found.kappa_plus.values[0, :, 0])
    np.testing.assert_allclose(ax.lines[0].get_ydata()[0], np.exp(values.mean()))
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    band = ax.collections[0].get_paths()[0].vertices
    ends = band[np.isclose(band[:, 0], SCALES[0]), 1]
    np.testing.assert_allclose([ends.min(), ends.max()], np.exp([low, high]))


def test_what_is_doubtful_or_infinite_is_drawn_as_such():
    ax = lh.plot.sweep(dataset(), x="scale", y="kappa_plus", hue="depth")
    filled, hollow, arrows = ax.lines[1:4]
    np.testing.assert_allclose(hollow.get_xdata(), SCALES[1:2])
    assert hollow.get_markerfacecolor() == "white"
    np.testing.assert_allclose(arrows.get_xdata(), SCALES[2:3])
    assert np.isfinite(filled.get_ydata()).all()  # the mean of the seeds that have a value
    assert np.isnan(ax.lines[4].get_ydata()[3])


def test_a_map_over_two_axes():
    ax = lh.plot.sweep(dataset(), x="scale", y="depth", hue="kappa_plus")
    colors = ax.collections[0].get_array()
    assert colors.shape == (2, 5)
    assert np.ma.getmaskarray(np.ma.masked_invalid(colors))[1, 3]
    assert ax.get_ylabel() == "depth"


def test_words_and_plain_variables_and_an_ax_of_ones_own():
    mine = Figure().add_subplot()
    found = xarray.Dataset({"loss": ("norm", [1.0, -2.0])}, {"norm": ["none", "batch"]})
    assert lh.plot.sweep(found, x="norm", y="loss", ax=mine) is mine
    assert [text.get_text() for text in mine.get_xticklabels()] == ["none", "batch"]
    assert (mine.get_xscale(), mine.get_yscale()) == ("linear", "linear")


def test_messages():
    found = dataset()
    with pytest.raises(TypeError, match=r"`dataset` must be an xarray.Dataset"):
        lh.plot.sweep(3, x="scale", y="kappa_plus")
    with pytest.raises(
        ValueError, match=r"`y` must name a variable of the dataset \(kappa_plus, status\), got 'kappa'"
    ):
        lh.plot.sweep(found, x="scale", y="kappa")
    with pytest.raises(
        ValueError, match=r"`x` must name a dimension of `kappa_plus` \(scale, seed, depth\), got 'width'"
    ):
        lh.plot.sweep(found, x="width", y="kappa_plus")
    with pytest.raises(ValueError, match=r"several values along depth: choose one by `dataset.sel\(depth=...\)`"):
        lh.plot.sweep(found, x="scale", y="kappa_plus")
