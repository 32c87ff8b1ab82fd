"""Figures of reports: what is drawn is what the rows say, what is not known is drawn as such, and names are legible."""

import dataclasses
import itertools

import numpy as np
import pytest
import xarray
from matplotlib.figure import Figure

import localhessian as lh
from localhessian.analysis import RowSpectrum, figure
from localhessian.analysis.plot._drawn import OPEN

pytestmark = pytest.mark.once

VIT = [f"vision_transformer.encoder.layers.{i}.self_attention" for i in range(50)]


def report(kappas, names=None, wrt="params", **more):
    """A row for each kappa_plus, with an interval of a factor of two."""
    names = names or [f"block{i}" for i in range(len(kappas))]
    rows, spectra = [], {}
    for name, kappa in zip(names, kappas, strict=True):
        ends = (kappa / 2, kappa * 2) if np.isfinite(kappa) else (30.0, np.inf)
        row = lh.Row(
            name, wrt, "gauss_newton", 8, 4, False, 6, 1.0, 1e-5, kappa, *ends, 5.0, 1.5, "Dense", 8, True, **more
        )  # fmt: skip
        rows.append(row)
        spectra[row.key] = RowSpectrum(np.array([0, 0.001, 0.1, 1.0]), np.array([2, 3, 1, 2]), np.array(kappa))
    return lh.Report(tuple(rows), spectra, {"batch": 4})


def doubtful():
    """Known, doubtful, infinite, and known as a bound."""
    rows = list(report([10.0, 20.0, np.inf, np.nan]).rows)
    rows[1] = dataclasses.replace(rows[1], status="RANK_UNCERTAIN")
    return lh.Report(tuple(rows), {}, {})


def drawn_points(ax, face):
    """(x, y) of the markers with this face."""
    lines = [line for line in ax.lines if line.get_marker() in {"o", "s"} and line.get_markerfacecolor() == face]
    return [tuple(point) for line in lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def test_depth_draws_values_intervals_doubts_and_infinities():
    ax = lh.plot.depth(doubtful())
    color = lh.plot.COLORS[0]
    assert drawn_points(ax, color) == [(0.0, 10.0)]
    assert drawn_points(ax, "white") == [(1.0, 20.0)]
    bound, edge = ax.collections[-2:]
    assert bound.get_offsets().tolist() == [[3.0, 30.0]]
    assert edge.get_offsets().tolist() == [[2.0, 0.98]]
    assert edge.get_offset_transform() == ax.get_xaxis_transform()
    unbounded = dataclasses.replace(doubtful().rows[0], kappa_upper=np.inf)
    carets = [line for line in lh.plot.depth(lh.Report((unbounded,), {}, {})).lines if line.get_marker() == OPEN]
    assert carets[0].get_xydata().tolist() == [[0.0, 10.0]]
    bars = ax.collections[0].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in bars[:2]], [[5, 20], [10, 40]])
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "block", r"$\kappa^+$ of $H_W$")


def test_networks_with_other_names_are_drawn_over_relative_depth():
    ax = lh.plot.depth({"a": report([1.0, 2.0, 3.0]), "b": report([4.0, 5.0], ["x", "y"])})
    assert ax.get_xlabel() == "relative depth, first block to last"
    a, b = (drawn_points(ax, color) for color in lh.plot.COLORS[:2])
    assert a == [(0.0, 1.0), (0.5, 2.0), (1.0, 3.0)]
    assert b == [(0.0, 4.0), (1.0, 5.0)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    same = lh.plot.depth({("a", "before"): report([1.0, 2.0]), ("a", "after"): report([3.0, 4.0])})
    assert same.get_xlabel() == "block"
    assert len(drawn_points(same, lh.plot.COLORS[0])) == 4  # one network, one color


def test_shares_lie_between_zero_and_one_and_blocks_and_sides_are_chosen():
    both = lh.Report(report([1.0, 2.0]).rows + report([7.0, 9.0], wrt="input").rows, {}, {})
    ax = lh.plot.depth(both, metric="share", wrt="input", blocks="block1")
    assert drawn_points(ax, lh.plot.COLORS[0]) == [(0.0, 0.75)]
    assert ax.get_ylim() == (-0.02, 1.02)
    assert ax.get_ylabel() == "rank / dimension of $H_z$"
    assert drawn_points(lh.plot.depth(both, wrt="input"), lh.plot.COLORS[0]) == [(0.0, 7.0), (1.0, 9.0)]


@pytest.mark.parametrize("columns", [None, 1, 2])
def test_fifty_names_do_not_overprint_and_lose_their_common_prefix(columns):
    ax = lh.plot.depth(report(np.logspace(0, 3, 50), VIT), columns=columns)
    ax.figure.canvas.draw()
    labels = [label for label in ax.get_xticklabels() if label.get_text()]
    assert 4 <= len(labels) < 50
    assert labels[0].get_text() == "0.self_attention"
    # Turned by 40 degrees, neighbours are apart by the height of a letter.
    at = [ax.transData.transform((tick, 1.0))[0] for tick in ax.get_xticks()]
    height = labels[0].get_size() / 72 * ax.figure.dpi
    assert min(after - before for before, after in itertools.pairwise(at)) * np.sin(np.radians(40)) >= 0.9 * height
    # They take less than half of the figure.
    assert ax.get_window_extent().height > 0.4 * ax.figure.get_window_extent().height


STAGES = [*(f"stages.{i}.blocks.{j}" for i in range(4) for j in range(3)), "stages.1.downsample.layers.0", "head_norm"]


def test_names_that_are_too_long_keep_their_last_words_and_stay_apart():
    ax = lh.plot.depth(report(np.logspace(0, 3, 14), STAGES), columns=2)
    told = [label.get_text() for label in ax.get_xticklabels()]
    assert len(set(told)) == len(told)
    assert set(told) <= {*(f"…{i}.blocks.{j}" for i in range(4) for j in range(3)), "…layers.0", "head_norm"}
    shown = str(report([1.0, 2.0, 3.0], ["stages.1.downsample.layers.0", "Transformer.encoderblock_12", "head"]))
    assert "…1.downsample.layers.0" in shown
    assert "…encoderblock_12 " in shown
    both = str(report([1.0, 2.0], [f"{side}.layers.0.cross_attention.out" for side in ("encoder", "decoder")]))
    assert "encoder.lay…" in both
    assert "decoder.lay…" in both


def test_spectra_over_the_share_of_the_dimension():
    ax = lh.plot.spectrum(report([1.0, 2.0, 3.0]), blocks=["block0", "block2"])
    line = ax.lines[0]
    np.testing.assert_allclose(line.get_xdata(), (np.arange(8) + 0.5) / 8)
    np.testing.assert_allclose(line.get_ydata(), [1, 1, 0.1, 0.001, 0.001, 0.001, np.nan, np.nan])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["block0", "block2"]
    assert ax.get_xlim() == (0, 1)
    middle = lh.plot.spectrum({"a": report([1.0, 2.0, 3.0]), "b": report([1.0], ["x"])})
    assert [text.get_text() for text in middle.get_legend().get_texts()] == ["a: block1", "b: x"]


def test_of_samples_with_other_counts_the_median_is_drawn():
    row = report([1.0], wrt="input").rows[0]
    values = np.array([[0, 1.0, 2.0], [0.5, 1.0, 4.0], [0, 0, 1.0]])
    spectrum = RowSpectrum(values, np.array([[6, 1, 1], [6, 1, 1], [3, 4, 1]]), np.ones(3))
    ax = lh.plot.spectrum(lh.Report((row,), {row.key: spectrum}, {}), wrt="input")
    np.testing.assert_allclose(ax.lines[0].get_ydata()[:2], [1, 0.25])
    assert np.isnan(ax.lines[0].get_ydata()[2:]).all()


def test_a_density_is_the_share_per_decade():
    ax = lh.plot.density({"a": report([1.0, 2.0])})
    counts, edges, _ = ax.patches[0].get_data()
    np.testing.assert_allclose(np.sum(counts * np.diff(np.log10(edges))), 6 / 8)  # two of eight are zero
    at = np.searchsorted(edges, 0.1 * (1 + 1e-9)) - 1
    np.testing.assert_allclose((counts * np.diff(np.log10(edges)))[at], 1 / 8)
    estimate = lh.spectral_density(lh.symmetric_operator(lambda v: 2 * v, 5), probes=2, steps=3)
    ax = lh.plot.density(estimate)
    np.testing.assert_allclose(ax.patches[0].get_data().values, np.asarray(estimate.density.value))
    assert ax.get_xlabel() == "eigenvalue"


def test_evolution_over_steps_from_reports_and_from_a_dataset():
    reports = {100: report([3.0, 30.0]), 0: report([1.0, 10.0])}
    ax = lh.plot.evolution(reports)
    lines = [line.get_ydata().tolist() for line in ax.lines if len(line.get_xdata()) == 2]
    assert [1.0, 3.0] in lines
    assert [10.0, 30.0] in lines
    assert ax.get_xlabel() == "step"
    dims = ("step", "block", "wrt")
    kappa = np.array([[[1.0], [10.0]], [[3.0], [np.nan]]])
    status = np.array([[[0], [0]], [[0], [-1]]])  # the last one does not exist
    notes = ("step", np.array(["the first call", ""], object))  # words, as the history of a probe has them
    data = {"kappa_plus": (dims, kappa), "status": (dims, status), "note": notes}
    dataset = xarray.Dataset(data, {"step": [0, 100], "block": ["a", "b"], "wrt": ["params"]})
    again = lh.plot.evolution(dataset)
    points = [line.get_xydata().tolist() for line in again.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [[0.0, 1.0], [100.0, 3.0]] in points
    assert [[0.0, 10.0]] in points


def test_compare_has_a_column_for_each_network_with_its_median():
    ax = lh.plot.compare({"a": report([1.0, 2.0, 9.0]), ("b", "after"): report([4.0])}, metric="kappa_plus")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b\nafter"]
    medians = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "None" and line.get_linewidth() == 2.5]
    assert medians == [2.0, 4.0]
    points = drawn_points(ax, lh.plot.COLORS[0])
    assert [y for _, y in points] == [1.0, 2.0, 9.0]
    assert all(abs(x) < 0.3 for x, _ in points)


def test_the_figure_of_a_report_is_composed_of_them_on_one_axis_and_as_wide_as_a_paper(tmp_path):
    rows = report([1.0, 2.0]).rows + report([7.0, 900.0], wrt="input").rows
    drawn = lh.Report(rows, report([1.0, 2.0]).spectra, {}).plot()
    plus, robust, of_spectrum = drawn.axes[:3]
    assert plus.get_ylim() == robust.get_ylim()
    assert (plus.get_ylabel(), robust.get_ylabel()) == (
        r"$\kappa^+$ of $H_W$",
        r"$\lambda_{max}/\lambda_{5\%}$ of $H_W$",
    )
    assert of_spectrum.get_title() == "block block1"
    assert len(drawn.axes) == 6
    assert len(report([1.0]).plot().axes) == 3  # one side only
    for columns, inches in ((1, 3.4), (2, 7.0)):
        assert report([1.0]).plot(tmp_path / "figure.pdf", columns=columns).get_size_inches()[0] == inches
        assert lh.plot.depth(report([1.0]), columns=columns).figure.get_size_inches()[0] == inches
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_an_ax_of_ones_own_is_taken_and_nothing_at_all_is_drawn_as_such():
    empty = lh.Report((), {}, {})
    mine = Figure().add_subplot()
    assert lh.plot.depth(report([1.0]), ax=mine) is mine
    for draw in (lh.plot.depth, lh.plot.spectrum, lh.plot.compare, lh.plot.density):
        assert [text.get_text() for text in draw(empty).texts] == ["nothing to show"]
    assert len(lh.plot.evolution({}).texts) == 1
    figure({"a": empty, "b": report([np.nan])})


def test_numbers_that_are_none_leave_no_warning(tmp_path):
    """Warnings are errors here."""
    broken = dataclasses.replace(report([np.nan]).rows[0], kappa_lower=np.nan, kappa_upper=np.nan, rank=np.nan)
    worse = dataclasses.replace(
        broken, block="worse", lambda_max=np.inf, kappa_plus=np.inf, size=0, status="NON_FINITE"
    )
    nothing = RowSpectrum(np.full((2, 3), np.nan), np.ones((2, 3), int), np.full(2, np.nan))
    odd = lh.Report((broken, worse), {broken.key: nothing, worse.key: nothing}, {})
    odd.plot(tmp_path / "odd.png")
    odd.html(tmp_path / "odd.html")
    assert "worse" in odd._repr_html_()
    assert str(odd.summary)
    assert odd.table(wide=True)
    for draw in (lh.plot.depth, lh.plot.spectrum, lh.plot.density, lh.plot.compare):
        draw(odd)


def test_messages():
    one = report([1.0])
    for call, error, sentence in (
        (lambda: lh.plot.depth(3), TypeError, "`reports` must be a report, or reports by the name of their network"),
        (lambda: lh.plot.depth(one, metric="kappa"), ValueError, "`metric` must be "),
        (lambda: lh.plot.depth(one, wrt="weights"), ValueError, "`wrt` must be 'params' or 'input'"),
        (
            lambda: lh.plot.depth(one, blocks="b"),
            ValueError,
            "`blocks` names `b`, which no report has: they have",
        ),
        (lambda: lh.plot.depth(one, blocks=3), TypeError, "`blocks` must be a name or several, got 3"),
        (lambda: lh.plot.depth(one, ax=3), TypeError, "`ax` must be an `ax` of matplotlib, or None, got 3"),
        (lambda: lh.plot.spectrum(one, columns=3), ValueError, "`columns` must be 1 or 2, of a paper"),
        (lambda: lh.plot.evolution(one), TypeError, "`history` must hold reports by their step"),
        (lambda: lh.plot.evolution(xarray.Dataset()), TypeError, "it lacks step, block, wrt"),
    ):
        with pytest.raises(error) as raised:
            call()
        assert sentence in str(raised.value)
