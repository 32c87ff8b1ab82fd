"""The page of a report in a real browser: clicks, hovers, widths, dark mode."""

import contextlib
import dataclasses
import functools
import html
import json
import math
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

import localhessian as lh
from localhessian.analysis import RowSpectrum, findings
from localhessian.analysis import html as write_html
from localhessian.analysis._page import MEANINGS

pytestmark = pytest.mark.once

HOSTILE = "</script><img src=x onerror='window.hacked=1'>"
BLOCKS = ("model.stem", f"model.{HOSTILE}", "model.conv", "model.lost")
WIDTHS = (360, 600, 1280)
ALWAYS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=10000")


def report(scale):
    """kappa_plus 3, 200, at least 50, none, times a factor; the second by the parameters, the third doubtful."""
    plain = lh.Row(
        BLOCKS[0], "params", "gauss_newton", 4, 8, False, 3, 2.0, 0.5, 3.0 * scale, 3.0 * scale, 3.0 * scale,
        2.0, 1.5, "Dense(max_size=4096)", 4, True, trace_error=0.0,
    )  # fmt: skip
    of = lambda block, kappa, **more: dataclasses.replace(
        plain, block=block, kappa_plus=kappa * scale, **({"kappa_lower": 0.5 * kappa * scale} | more)
    )
    rows = (
        plain,
        of(BLOCKS[1], 200.0, kappa_upper=math.inf, status="RANK_UNCERTAIN", note=f"no clear gap {HOSTILE}"),
        of(BLOCKS[2], math.nan, kappa_lower=50.0 * scale, wrt="input", status="BUDGET_SPENT", note="not converged"),
        of(
            BLOCKS[3],
            math.nan,
            kappa_lower=math.nan,
            lambda_max=math.nan,
            wrt="input",
            status="NON_FINITE",
            note="lost",
        ),
    )
    spectra = {row.key: RowSpectrum(np.array([0.0, 0.5, 1, 2]), np.ones(4, int), np.array(1.0)) for row in rows[:3]}
    meta = dict.fromkeys(("parameters", "batch", "dtype", "device", "seconds", "localhessian", "jax"), 1)
    return lh.Report(rows, spectra, meta)


REPORTS = {"a": report(1.0), ("b", "after"): report(10.0)}
SCRIPT = Path(__file__).with_name("page.js").read_text("utf-8")


@functools.cache
def browser():
    """One that starts here; None where there is none, or it may not (a container without what it needs)."""
    for found in filter(None, map(shutil.which, ("chromium", "google-chrome"))):
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError, subprocess.SubprocessError):
            command = [found, *ALWAYS, f"--user-data-dir={folder}", "--dump-dom", "about:blank"]
            subprocess.run(command, capture_output=True, check=True, timeout=60)
            return found
    return None


def in_browser(page, folder, script, *flags):
    """What the script makes the text of a document that holds the page at all widths."""
    if browser() is None:
        pytest.skip("no browser that starts: install chromium")
    frames = "".join(f'<iframe width="{w}" height="900" srcdoc="{html.escape(page)}"></iframe>' for w in WIDTHS)
    around = folder / "around.html"
    script = f"addEventListener('load', () => {{ const WIDTHS = {list(WIDTHS)};\n{script}\n}})"
    around.write_text(f"<!doctype html><body>{frames}<script>{script}</script></body>", "utf-8")
    command = [browser(), *ALWAYS, f"--user-data-dir={folder / 'profile'}", *flags, "--dump-dom", around.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"<body>(\{.*\})\s*</body>", dom, re.DOTALL)
    assert found, f"the script did not come to its end: {dom[-300:]}"
    return json.loads(html.unescape(found.group(1)))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_html(REPORTS, tmp_path_factory.mktemp("page") / "page.html").read_text("utf-8")


@pytest.fixture(scope="module")
def told(page, tmp_path_factory):
    return in_browser(page, tmp_path_factory.mktemp("browser"), SCRIPT)


def test_kappa_is_seen_at_every_width_and_nothing_scrolls_sideways(told):
    for width in map(str, WIDTHS):
        assert told[width]["kappa"] == "3"
        assert not told[width]["scrolls"]
        assert not told[width]["extra"]
    assert [told[str(width)]["note"] for width in WIDTHS] == [False, False, True]


def test_names_are_text(told, page):
    assert (told["steps"]["images"], told["steps"]["hacked"]) == (0, True)
    assert told["steps"]["names"] == list(BLOCKS)
    assert "<img" not in page


def test_tables_sort_and_filter(told):
    steps, rows = told["steps"], [f"r0-{j}" for j in range(4)]
    # By value, or else its lower bound; what has neither is last either way; then the order of the network.
    assert steps["sorted"] == [["r0-0", "r0-2", "r0-1", "r0-3"], ["r0-1", "r0-2", "r0-0", "r0-3"], rows]
    assert steps["byName"] == ["r0-1", "r0-2", "r0-3", "r0-0"]
    assert steps["filtered"] == ["r0-1"]
    assert steps["doubtful"] == rows[1:]
    assert steps["wide"]


def test_a_click_on_a_row_opens_its_spectrum_interval_route_and_note(told):
    steps = told["steps"]
    assert steps["detail"] == "detail"
    assert steps["note"] == f"no clear gap {HOSTILE}"
    assert steps["curve"] == 1
    expected = {"kappa_plus": "200 [100, inf]", "kappa_lower": "100", "kappa_upper": "inf", "method": "Dense"}
    assert expected.items() <= steps["facts"].items()
    assert steps["spectrumTip"].splitlines() == ["lambda / lambda_max", "1.0 at 0.13"]
    assert (steps["tipGone"], steps["closed"]) == (True, True)


def test_points_tell_what_they_are_and_lead_to_their_rows(told):
    steps = told["steps"]
    assert steps["points"] == ["r0-0", "r0-1", "r0-2", "r1-0", "r1-1", "r1-2"]
    assert steps["hollow"] == 2  # bounds are arrows
    words = ["kappa_plus  200 [100, inf]", "RANK_UNCERTAIN", f"no clear gap {HOSTILE}"]
    assert steps["tip"].splitlines() == [f"{BLOCKS[1]}  H_W  a", *words]
    assert steps["opened"]


def test_findings_lead_to_their_rows(told):
    wanted, seen = told["steps"]["card"]
    assert wanted == seen
    assert told["steps"]["again"] == [f"r0-{j}" for j in range(4)]


def test_reports_stand_side_by_side_and_are_switched(told):
    steps = told["steps"]
    assert steps["sections"] == 0
    assert steps["beside"][0] == [BLOCKS[0], "H_W", "3", "30"]
    assert steps["beside"][2] == [BLOCKS[2], "H_z", "≥ 50", "≥ 500"]
    assert steps["together"] == 2
    assert steps["shown"] == ["block", "side", "a"]
    assert steps["left"] == ["a"]


def contrast(colors):
    """Of WCAG 2.2, between 1 and 21; and whether the second color is the darker one."""
    channels = [np.array(re.findall(r"[\d.]+", color)[:3], float) / 255 for color in colors]
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in channels]
    ink, ground = (float(c @ [0.2126, 0.7152, 0.0722]) for c in linear)
    return (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05), ground < ink


def test_dark_mode_is_dark_and_both_are_legible(told, page, tmp_path):
    colors = "const c = getComputedStyle(document.querySelector('iframe').contentDocument.body);"
    script = f"{colors} document.body.textContent = JSON.stringify({{ colors: [c.color, c.backgroundColor] }})"
    dark = in_browser(page, tmp_path, script, "--blink-settings=preferredColorScheme=0")
    for found, is_dark in ((told, False), (dark, True)):
        ratio, ground_is_darker = contrast(found["colors"])
        assert ratio > 7  # level AAA
        assert ground_is_darker is is_dark


def test_other_names_are_drawn_over_relative_depth_and_nothing_is_no_error(tmp_path):
    one = report(1.0)
    rows = tuple(dataclasses.replace(row, block=f"other.{i}") for i, row in enumerate(one.rows[:2]))
    page = write_html({"a": one, "b": lh.Report(rows, {}, {}), "c": lh.Report((), {}, {})}, tmp_path / "page.html")
    script = """
      const page = document.querySelector("iframe").contentDocument, text = (node) => node.textContent;
      const told = [[...page.querySelectorAll("figure")].map(text), text(page.querySelector(".count"))];
      document.body.textContent = JSON.stringify({ told });
    """
    (by_parameters, by_input), count = in_browser(page.read_text("utf-8"), tmp_path, script)["told"]
    assert "relative depth" in by_parameters
    assert "relative depth" not in by_input
    assert count == "6 of 6 rows"


def test_the_data_of_the_page_are_the_numbers_and_the_findings_those_of_the_report(page):
    data = json.loads(re.search(r"const data = (\{.*?\});\n", page).group(1))
    rows = data["reports"][1]["rows"]
    assert [row["figures"]["kappa_lower"] for row in rows[:3]] == [30.0, 1000.0, 500.0]
    assert rows[1]["figures"]["kappa_upper"] == math.inf
    np.testing.assert_allclose(rows[0]["curve"], [[0.125, 0.375, 0.625], [0, np.log10(0.5), np.log10(0.25)]], atol=5e-4)
    assert page.count("<th ") == 2 * len(MEANINGS)
    assert set(re.findall(r'<tr id="(.*?)"', page)) == {row["id"] for one in data["reports"] for row in one["rows"]}
    assert len(page) < 80_000
    text = re.sub("</?code>", "`", html.unescape(page))
    for finding in findings(REPORTS):
        assert f"<li>{finding.text}" in text
