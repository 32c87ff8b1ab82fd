"""Reports: table, figure, page, file; and the command line."""

import dataclasses
import html.parser
import json
import os
import subprocess
import sys

import jax
import matplotlib.figure
import networks
import numpy as np
import pytest
from typer.testing import CliRunner

import localhessian as lh
from localhessian.analysis import RowSpectrum, findings, table
from localhessian.analysis import html as write_html
from localhessian.analysis._findings import MOST
from localhessian.analysis._table import WIDE, WIDTH, number
from localhessian.analysis.rows import COLUMNS, Label, labeled, stored_label
from localhessian.lab.cli import app

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def report():
    return lh.analyze(*networks.transformer(), samples_per_block=2)


def made_up(kappa, *, rank=10, q05=5.0, status="CONVERGED", converged=True, lower=None, wrt="params"):
    row = lh.Row(
        "conv", wrt, "gauss_newton", 10, 4, False, rank, 2.0, 0.1, kappa, kappa if lower is None else lower,
        np.inf, q05, 1.5, "Dense(max_size=4096)", 10, converged, status, trace_error=0.0 if converged else np.nan,
    )  # fmt: skip
    spectrum = RowSpectrum(np.linspace(0.1, 2, 10), np.ones(10, int), np.array(kappa))
    return lh.Report((row,), {row.key: spectrum}, {"batch": 4})


def test_save_and_load_are_the_same_and_use_no_pickle(report, tmp_path):
    path = report.save(tmp_path / "deep" / "report")
    assert path.name == "report.npz"
    loaded = lh.Report.load(tmp_path / "deep" / "report")
    for one, two in zip(report.rows, loaded.rows, strict=True):
        np.testing.assert_equal(dataclasses.asdict(two), dataclasses.asdict(one))
    assert loaded.meta == report.meta
    assert list(loaded.spectra) == list(report.spectra)
    for key, spectrum in report.spectra.items():
        np.testing.assert_array_equal(loaded.spectra[key].eigenvalues, spectrum.eigenvalues)
    with np.load(path, allow_pickle=False) as file:
        assert json.loads(str(file["head"]))["version"] == 1
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "deep" / "report").mkdir()
    assert lh.Report.load(tmp_path / "deep" / "report").meta == report.meta  # not the folder of that name


def test_files_of_version_0_1_still_load(report, tmp_path):
    """They have no columns of what stands behind the top, and their labels were text."""
    path = report.with_meta(label="plain | after training").save(tmp_path / "report.npz")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    head = json.loads(str(arrays["head"]))
    new = COLUMNS[COLUMNS.index("top_on_mean") :]
    head["rows"] = [{name: value for name, value in row.items() if name not in new} for row in head["rows"]]
    np.savez_compressed(path, **{**arrays, "head": np.array(json.dumps(head))})
    old = lh.Report.load(path)
    assert old.to_dataframe()[list(COLUMNS[:26])].equals(report.to_dataframe()[list(COLUMNS[:26])])
    assert np.isnan(old.rows[2].kappa_centered)
    assert stored_label(old.meta["label"], "x") == ("plain", "after training")
    assert str(old) == str(report)
    assert str(old.summary)


def test_damaged_and_foreign_files_are_said(report, tmp_path):
    path = report.save(tmp_path / "report.npz")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"is not a localhessian report of version 1, or it is damaged"):
        lh.Report.load(path)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="is not a localhessian report"):
        lh.Report.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        lh.Report.load(tmp_path / "absent.npz")


def test_dataframe_has_the_fixed_columns(report):
    frame = report.to_dataframe()
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == len(report.rows)
    assert frame.loc[0, "kappa_plus"] == report.rows[0].kappa_plus


def test_table_holds_every_column_and_row(report):
    lines = report.table(wide=True).splitlines()
    words = " ".join(lines[:4]).split()
    assert {part for column in WIDE for part in column.split("_")} <= set(words)
    assert sum(line.split()[:2] == ["attention", "params"] for line in lines) == 1
    assert "attention" in report._repr_html_()
    assert " - " in next(line for line in lines if line.split()[:2] == ["embed", "input"])


def test_table_of_several_reports_has_headings_and_marks():
    text = table({("one", "before"): made_up(12.0), ("two", "after"): made_up(3.4e9, status="RANK_UNCERTAIN")})
    assert " one, before\n" in text
    assert " two, after\n" in text
    assert [line.split()[2:] for line in text.splitlines() if "conv" in line] == [
        ["10/10", "12", "[12,", "inf]", "5"],
        ["10/10", "3.40e9", "[3.4e9,", "inf]", "5", "?"],
    ]
    assert "? no clear gap at the rank cutoff" in text
    assert "3.40e9?" in table({"": made_up(3.4e9, status="RANK_UNCERTAIN")}, wide=True)


def test_the_table_fits_a_hundred_columns_and_says_why_beside_the_row():
    long = dataclasses.replace(
        made_up(np.nan, lower=5.0).rows[0],
        block="model.encoder.layers.23.self_attention.query",
        note="lambda_max certified, the rest by quadrature, " + "so that kappa_plus has a lower bound only " * 3,
    )
    rows = (long, dataclasses.replace(long, wrt="input", note="short reason", status="NON_FINITE"))
    lines = str(lh.Report(rows, {}, {})).splitlines()
    table, beneath = lines[:4], "\n".join(lines[4:])
    assert max(map(len, table)) <= WIDTH
    assert "≥ 5 " in table[2]
    assert "lambda_max certified, the" in table[2]
    assert f"{long.block} H_W: {long.note}" in beneath
    assert table[3].endswith("!  short reason")
    assert "short reason" not in beneath
    assert "! no figures can be had" in beneath


def test_cells_are_text_whatever_they_hold_and_wherever_they_are_printed(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    row = dataclasses.replace(made_up(5.0).rows[0], block="[bold]a[/bold]", note="line\nbreak [red]")
    text = str(lh.Report((row,), {}, {}))
    assert "\x1b" not in text
    assert "[bold]a[/bold]" in text
    assert "line break [red]" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.0123"), (12.3, "12.3"), (1234.5, "1234"), (1234, "1234"), (1.234e8, "1.23e8"), (3e-9, "3.00e-9")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text
    assert abs(float(number(value, 2)) / value - 1) < 0.05


def test_a_report_is_its_rows(report):
    assert len(report) == len(report.rows) == len(list(report))
    head = report["head"]
    assert [row.key for row in head] == [row.key for row in report if row.block == "head"]
    assert head["head", "input"] == report["head", "input"]
    assert set(head.spectra) == {row.key for row in head if row.has_figures}
    assert str(head) != ""
    with pytest.raises(KeyError, match="the report has no row 'tail'"):
        report["tail"]
    assert repr(report).startswith("Report of 6 local Hessians of 3 blocks; ")


def test_a_row_is_found_by_its_key(report):
    assert report["head", "input"].block == "head"
    with pytest.raises(KeyError, match=r"the report has no row \('tail', 'input'\)"):
        report["tail", "input"]


def test_figure_has_log_axes_and_names_the_blocks(report, tmp_path):
    figure = report.plot(tmp_path / "figure.png")
    assert isinstance(figure, matplotlib.figure.Figure)
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["embed", "attention", "head"]


def test_figure_shows_a_lower_bound_as_an_arrow():
    figure = made_up(np.nan, lower=300.0).plot()
    offsets = np.concatenate(
        [points.get_offsets() for points in figure.axes[0].collections if len(points.get_offsets())]
    )
    assert [0.0, 300.0] in offsets.tolist()


class Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in {"src", "href"} or tag in {"script", "link"}]


def test_page_needs_no_network(report, tmp_path):
    path = report.html(tmp_path / "report.html")
    page = path.read_text("utf-8")
    links = Links()
    links.feed(page)
    assert [link for link in links.found if link and not link.startswith("#")] == []
    assert "<svg" in page
    assert "attention" in page
    assert "H_z does not exist: the block&#39;s input holds integers" in page


def test_page_escapes_text(tmp_path):
    full = lh.analyze(*networks.mlp(), blocks=["head"])
    path = write_html({"": full}, tmp_path / "a.html", text="<b>5 > 4</b>")
    assert "&lt;b&gt;5 &gt; 4&lt;/b&gt;" in path.read_text("utf-8")


def test_missing_extra_is_named(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"this needs pandas: pip install 'localhessian\[report\]'"):
        report.to_dataframe()


def test_labels_are_data_and_those_of_older_files_are_read():
    assert labeled({"a": 1, ("b", "after"): 2}) == {Label("a"): 1, Label("b", "after"): 2}
    assert str(Label("a", "after")) == "a, after"
    assert stored_label("plain | at initialization", "x") == stored_label(["plain", "at initialization"], "x")
    assert stored_label(None, "stem") == stored_label([1, 2], "stem") == Label("stem")
    for wrong in (3, (), ("a", 1), ("a", "b", "c")):
        with pytest.raises(TypeError, match=r"a report is labeled by the name of its network, or by \(network, stage"):
            labeled({wrong: None})


def test_findings_are_computed_from_the_rows():
    told = findings(
        {("a", "before"): made_up(10.0), ("a", "after"): made_up(40.0), ("b", "after"): made_up(7.0, q05=50.0)}
    )
    text = str(told)
    assert "kappa_plus(H_W): a 10 before, 40 after; b 7 after." in text
    assert told[0].text.endswith("in H_W a is the best conditioned (a 5, b 50).")
    assert {label for label, _ in told[0].rows} == {("a", "after"), ("b", "after")}
    assert "All 3 spectra are complete" in text
    assert "one random seed and one batch of 4 samples" in text
    assert text.count("\n- ") == len(told) - 1


def test_findings_carry_every_reservation():
    reports = {
        "a": made_up(10.0, status="RANK_UNCERTAIN"),
        "b": made_up(np.nan, lower=5.0, converged=False, q05=np.nan),
        "c": made_up(11.0, q05=6.0, wrt="input", rank=4),
    }
    reports["a"] = reports["a"].with_meta(accuracy=0.5)
    text = str(findings(reports))
    assert "1 of 3 kappa_plus (marked ?) hang on where the rank rule cuts" in text
    assert "1 are known as lower bounds only" in text
    assert "1 spectra did not converge" in text
    assert "kappa_plus(H_z) of `conv` of c speaks of less than half of the space (of 40 % in `conv` of c)" in text
    assert "test accuracy after training: a 50.0 %" in text
    close = findings({"a": made_up(10.0), "b": made_up(11.0, q05=6.0)})
    assert "the networks hardly differ (a 5, b 6)" in close[0].text


def test_a_small_figure_on_a_small_share_is_never_called_the_best():
    for wrt, symbol in (("params", "H_W"), ("input", "H_z")):
        told = findings({"a": made_up(2.0, q05=2.0, rank=3, wrt=wrt), "b": made_up(90.0, q05=60.0, wrt=wrt)})
        assert f"in {symbol} a has the smallest figure (a 2, b 60), but on 30 % of the space only" in told[0].text
        assert "best conditioned" not in str(told)


def test_no_kappa_is_spoken_of_where_there_is_none():
    told = str(findings({"a": made_up(np.nan, rank=0, status="ZERO"), "b": made_up(2.0, rank=3)}))
    assert "kappa_plus(H_W) of `conv` of b speaks of less than half" in told
    assert "(of 0 %" not in told


def test_findings_of_one_network_name_the_block_and_the_effect():
    def row(block, **more):
        return dataclasses.replace(made_up(50.0, rank=9).rows[0], block=block, kappa_q05=20.0, **more)

    behind = {"top_on_mean": 0.9, "kappa_inputs": 500.0, "kappa_centered": 20.0, "kappa_scaled": 490.0}
    of_gradient = {"gradient_top": 0.1, "gradient_bottom": 0.8}
    rows = (row("a"), row("b", **behind), row("c", **of_gradient), row("d", top_channel=3, top_channel_share=0.99))
    worst = dataclasses.replace(row("e"), kappa_q05=900.0)
    told = lh.Report((*rows, worst), {}, {"batch": 4}).summary
    assert 4 <= len(told) <= MOST
    assert told[0].text == "H_W is worst conditioned in `e`, lambda_max/lambda_5% = 900, 45 times the median block's."
    assert told[0].rows == ((Label(), worst.key),)
    text = str(told)
    assert "largest eigenvalue of H_W of `b` (90 % of the top eigenvector in `b`): centering that input" in text
    assert "second moments there from 500 to 20." in text
    assert "scaling" not in text  # 500 to 490 is no effect
    assert "80 % of the squared gradient of `c` lies where the curvature is below a thousandth" in text
    assert "half as large: 3 in `d`." in text
    broken = dataclasses.replace(row("f"), status="NON_FINITE", lambda_max=np.nan)
    told = lh.Report((*rows, broken), {}, {"batch": 4}).summary
    assert "(1 of 5 local Hessians have none, see below)" in told[0].text
    assert told[1].text.startswith("First: `f` left the range of its numbers")


def test_command_line_analyzes_and_renders_again(tmp_path):
    options = ["--models", "skip", "--depth", "1", "--width", "2", "--steps", "3", "--batch", "3"]
    result = CliRunner().invoke(app, ["demo", *options, "--out", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names == {"figure.png", "report.html", "skip-at-initialization.npz", "skip-after-training.npz"}
    assert "Median over the blocks of kappa_plus(H_W): skip" in result.output
    again = CliRunner().invoke(app, ["report", str(tmp_path / "demo"), "--out", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "report.html").exists()


def test_command_line_says_what_is_wrong(tmp_path):
    unknown = CliRunner().invoke(app, ["demo", "--models", "resnet"])
    assert unknown.exit_code == 2
    assert "`--models` takes names of plain, batchnorm, skip" in " ".join(unknown.output.split())
    twice = CliRunner().invoke(app, ["demo", "--models", "plain,plain"])
    assert (twice.exit_code, "names a network twice" in " ".join(twice.output.split())) == (2, True)
    beyond = CliRunner().invoke(app, ["demo", "--batch", "5000"])
    assert (beyond.exit_code, "`--batch` must be at most 1437" in " ".join(beyond.output.split())) == (2, True)
    empty = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert "there is no report (.npz) in" in " ".join(empty.output.split())
    assert set(CliRunner().invoke(app, ["--help"]).output.split()) >= {"demo", "analyze", "plan", "report"}
    assert CliRunner().invoke(app, ["--version"]).output.startswith("localhessian 0.1.0")


@pytest.mark.parametrize(("given", "kept"), [((), True), (("--no-cache",), False)])
def test_the_command_line_keeps_its_programs_for_the_next_process(tmp_path, given, kept):
    code = (
        "import jax, sys\nfrom typer.testing import CliRunner\nfrom localhessian.lab.cli import app\n"
        "CliRunner().invoke(app, [*sys.argv[1:], 'report', 'nothing'])\n"
        "jax.jit(lambda x: x + 1)(1.0)\nprint(jax.config.jax_compilation_cache_dir)"
    )
    left_out = ("JAX_COMPILATION_CACHE_DIR", "LOCALHESSIAN_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    run = subprocess.run(
        [sys.executable, "-c", code, *given],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (run.stdout.strip() != "None") is kept
    assert any(path.name.startswith("jit_") for path in tmp_path.rglob("programs/*")) is kept


def test_command_line_keeps_what_came_before_a_divergence(tmp_path):
    options = ["--models", "plain", "--depth", "2", "--width", "3", "--batch", "4", "--steps", "3"]
    rate = "1e300" if jax.config.jax_enable_x64 else "1e38"
    result = CliRunner().invoke(app, ["demo", *options, "--learning-rate", rate, "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "plain after training cannot be analyzed (has it diverged?): the parameters of block" in result.output
    assert (tmp_path / "plain-at-initialization.npz").is_file()
    (tmp_path / "file").write_text("")
    wrong = CliRunner().invoke(app, ["demo", *options, "--out", str(tmp_path / "file")])
    assert wrong.exit_code == 2
    assert "cannot be written to" in " ".join(wrong.output.replace("│", " ").split())
