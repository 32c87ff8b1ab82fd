"""Files are input too: damaged and hostile ones, folders that cannot be written to, two processes at once."""

import dataclasses
import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

import localhessian as lh
from localhessian._files import check_folder, folder_of_ones_own, whole
from localhessian.analysis.rows import Row, RowSpectrum
from localhessian.lab import digits
from localhessian.lab._cifar import _member
from localhessian.lab._data import Images, images_from_arrays, images_from_npz
from localhessian.lab.cli import app
from localhessian.lab.comparison import Comparison, Plan, network
from localhessian.lab.comparison._checkpoint import Checkpoint
from localhessian.lab.comparison._run import Run
from localhessian.lab.comparison._trainer import Curve

pytestmark = pytest.mark.once

KEY = ("a", "input", "gauss_newton")
ROW = Row(*KEY, 3, 2, False, 3.0, 4.0, 1.0, 4.0, 4.0, 4.0, 4.0, 1.0, "Dense()", 3, True, note="<b>$\\frac$</b>")


def report():
    values = np.array([[1.0, 2.0, 4.0], [1.0, 1.0, np.inf]])
    return lh.Report((ROW,), {KEY: RowSpectrum(values, np.ones((2, 3), np.int32), np.array([4.0, 1.0]))}, {"batch": 2})


def altered(path, change):
    """The saved report with another head."""
    with np.load(path) as file:
        arrays = dict(file)
    head = json.loads(str(arrays.pop("head")))
    change(head, arrays)
    np.savez(path, head=np.array(json.dumps(head)), **arrays)


def test_what_is_saved_is_loaded(tmp_path):
    assert lh.Report.load(report().save(tmp_path / "r")) == report()
    assert [path.name for path in tmp_path.iterdir()] == ["r.npz"]


def test_two_hundred_mutations_give_the_report_or_one_sentence(tmp_path):
    whole_file = report().save(tmp_path / "r").read_bytes()
    random, path, refused = np.random.default_rng(0), tmp_path / "m.npz", []
    for i in range(200):
        content = bytearray(whole_file)
        for _ in range(1 + i % 3):
            content[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(bytes(content[: random.integers(1, len(content))]) if i % 4 == 0 else bytes(content))
        try:
            assert lh.Report.load(path) == report()
        except ValueError as error:
            refused.append(str(error))
    start = f"`{path}` is not a localhessian report of version 1, or it is damaged"
    assert len(refused) > 100
    assert all(sentence.startswith(start) for sentence in refused)


def set_row(name, value):
    return lambda head, _: head["rows"][0].__setitem__(name, value)


@pytest.mark.parametrize(
    "change",
    [
        lambda head, _: head.pop("rows"),
        lambda head, _: head.pop("meta"),
        lambda head, _: head.update(meta=[1]),
        lambda head, _: head.update(version=2),
        lambda head, _: head.update(rows=[{"block": "a"}]),
        lambda head, _: head.update(spectra=[["a"]]),
        lambda head, _: head["rows"][0].update(more=1),
        set_row("kappa_plus", "4"),
        set_row("size", 3.5),
        set_row("converged", 1),
        set_row("block", None),
        lambda _, arrays: arrays.update({"0/eigenvalues": np.array([["a", "b", "c"]] * 2)}),
        lambda _, arrays: arrays.update({"0/multiplicities": np.ones((2, 4), int)}),
        lambda _, arrays: arrays.update({"0/kappas": np.ones(())}),
        lambda _, arrays: arrays.pop("0/kappas"),
    ],
)
def test_reports_of_another_form_are_refused(tmp_path, change):
    path = report().save(tmp_path / "r")
    altered(path, change)
    with pytest.raises(ValueError, match="is not a localhessian report"):
        lh.Report.load(path)


def test_hostile_files_cost_nothing(tmp_path):
    path = tmp_path / "r.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    for name, content in {
        "claims": [("head.npy", header.getvalue())],
        "deep": [("head.npy", _npy(np.array("[" * 100_000)))],
        "bomb": [(f"{i}.npy", bytes(2**27)) for i in range(9)],
    }.items():
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for entry in content:
                archive.writestr(*entry)
        with pytest.raises(ValueError, match="is not a localhessian report"):
            lh.Report.load(path)
        assert name
    with pytest.raises(ValueError, match="is not a localhessian report"):
        lh.Report.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        lh.Report.load(tmp_path / "absent.npz")


def _npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_names_are_never_markup(tmp_path):
    hostile = lh.Report((ROW,), {}, {"batch": 2})
    assert "<b>" not in hostile._repr_html_()
    assert "&lt;b&gt;" in hostile._repr_html_()
    odd = lh.Report((Row("$\\frac$", *list(vars(ROW).values())[1:]),), {}, {"batch": 2})
    with pytest.raises(KeyError):
        odd["a", "params"]


def test_labels_of_strangers_stay_in_the_folder_and_two_of_one_name_are_two(tmp_path):
    for stem in ("one", "two"):
        report().with_meta(label="../../$x$/y", place=[]).save(tmp_path / "in" / stem)
    result = CliRunner().invoke(app, ["report", str(tmp_path / "in"), "--out", str(tmp_path / "a" / "b" / "c")])
    assert result.exit_code == 0, result.output
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npz")}
    assert names == {"in/one.npz", "in/two.npz", "a/b/c/x-y.npz", "a/b/c/x-y-two.npz"}


def test_writers_of_one_path_do_not_meet(tmp_path):
    path, failed = tmp_path / "r.npz", []

    def save():
        try:
            for _ in range(20):
                report().save(path)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=save) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert lh.Report.load(path) == report()
    assert [name.name for name in tmp_path.iterdir()] == ["r.npz"]


def interrupted(path):
    with whole(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt


def test_what_is_not_written_whole_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_text() == "old"
    assert [name.name for name in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(OSError, match="cannot be a folder"):
        report().save(path / "below")
    with pytest.raises(OSError, match="cannot be written to"):
        check_folder(path)
    (tmp_path / "r.npz").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        report().save(tmp_path / "r.npz")


def test_a_folder_has_one_process_at_a_time(tmp_path):
    code = (
        "import sys, time, pathlib\nfrom localhessian._files import folder_of_ones_own\n"
        "with folder_of_ones_own(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process works on"), folder_of_ones_own(tmp_path):
            pass
        other.kill()
        other.wait()
    with folder_of_ones_own(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": 1}', "\x00\xff", "[" * 100_000, '{"plan": {"x": 1}}'])
def test_a_damaged_study_is_told(tmp_path, content):
    (tmp_path / "study.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"study\.json` is damaged: choose another folder"):
        Comparison.load(tmp_path)


CURVE = Curve(np.array([2.0, 1.0, np.nan]), np.array([2, 3]), np.array([1.0, np.inf]), *np.array([[0.5, 0.6], [1, 2]]))
RUN = Run("plain", "sgd", 0.1, 7, "final", CURVE)
META = {
    "settings": {"data": "ab", "steps": 3},
    "networks": {"plain": "f32"},
    "algorithms": {"sgd": [0.1, 1.0]},
    "programs": {"plain by sgd": "cd"},
    "plan": dataclasses.asdict(Plan(steps=3, seeds=2, tuning_seeds=np.int64(1))),
    "jax": "0",
}
ABSURD = [None, True, -1, 1.5, 1e400, "x", [], {}, [[1]], 10**400, "\udcff", {"a": None}]


def mutated(content, random, i):
    """JSON with one entry made absurd, or bytes flipped, or cut off."""
    if i % 4 == 0:
        return content[: random.integers(len(content))]
    if i % 4 == 1:
        flipped = bytearray(content)
        flipped[random.integers(len(content))] ^= 1 << random.integers(8)
        return bytes(flipped)
    whole = node = json.loads(content)
    while True:
        key = random.choice(list(node)) if isinstance(node, dict) else int(random.integers(len(node)))
        if not (isinstance(node[key], dict | list) and node[key] and random.random() < 0.8):
            break
        node = node[key]
    node[key] = ABSURD[random.integers(len(ABSURD))]
    return json.dumps(whole).encode()


def test_mutations_of_a_study_give_numbers_or_one_sentence(tmp_path):
    random, refused = np.random.default_rng(0), []
    for seed in (0, 1):
        for role in ("tuning", "final"):
            run = dataclasses.replace(RUN, seed=seed, role=role)
            run.save(tmp_path / "runs" / run.place)
    path, head = tmp_path / "runs" / run.place, tmp_path / "study.json"
    head.write_text(json.dumps(META))
    table = str(Comparison.load(tmp_path))
    assert "plain" in table
    for file in (path, head):
        content = file.read_bytes()
        for i in range(200):
            file.write_bytes(mutated(content, random, i))
            try:
                found = Comparison.load(tmp_path)
                assert str(found)
                assert found.plot() is not None
            except ValueError as error:
                refused.append(str(error))
        file.write_bytes(content)
    assert len(refused) > 250
    assert all("damaged: " in sentence for sentence in refused)
    assert str(Comparison.load(tmp_path)) == table


def test_mutations_of_images_give_the_images_or_one_sentence(tmp_path):
    random, refused, path = np.random.default_rng(0), [], tmp_path / "i.npz"
    x = random.random((5, 4), np.float32)
    truth = Images(x, np.arange(5, dtype=np.int32), x[:2], np.arange(2))
    np.savez_compressed(path, **truth._asdict())
    content = path.read_bytes()
    for i in range(200):
        flipped = bytearray(content[: random.integers(len(content))] if i % 4 == 0 else content)
        if flipped:
            flipped[random.integers(len(flipped))] ^= 1 << random.integers(8)
        path.write_bytes(flipped)
        try:
            found = images_from_npz(path)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert all(np.array_equal(a, b) for a, b in zip(found, truth, strict=True))
    assert len(refused) > 100
    assert all(sentence.startswith(f"`{path}` is no file of images.") for sentence in refused)


def test_a_run_is_read_from_its_own_place_only(tmp_path):
    RUN.save(tmp_path / RUN.place)
    assert Run.load(tmp_path / RUN.place).curve.at.tolist() == [2, 3]
    other = tmp_path / dataclasses.replace(RUN, seed=8).place
    (tmp_path / RUN.place).rename(other)
    with pytest.raises(ValueError, match=r"another place, plain/sgd/final-rate=0.1-seed=7\.json"):
        Run.load(other)


def test_what_cannot_be_written_is_one_sentence_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "r.npz"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"r\.npz` cannot be written \(No space left on device\)"), whole(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [file.name for file in tmp_path.iterdir()] == ["r.npz"]
    assert path.read_bytes() == b"old"
    with pytest.raises(OSError, match="cannot be written"):
        report().save(tmp_path / ("long" * 100))


def test_a_checkpoint_is_not_thrown_away_for_an_error_that_passes(tmp_path, monkeypatch):
    state = {"w": np.arange(6.0)}
    checkpoint = Checkpoint(tmp_path / "c", every=1)
    checkpoint.save(3, state)
    with monkeypatch.context() as patch:
        for error in (
            PermissionError(errno.EACCES, "denied"),
            MemoryError(),
            ValueError("RESOURCE_EXHAUSTED: .zarray"),
        ):
            patch.setattr(checkpoint, "_manager", lambda error=error: (_ for _ in ()).throw(error))
            with pytest.raises(OSError, match="cannot be read now"):
                checkpoint.restore(state)
    np.testing.assert_array_equal(checkpoint.restore(state)["w"], state["w"])


def test_a_damaged_checkpoint_is_thrown_away(tmp_path):
    state = {"w": np.arange(6.0)}
    checkpoint = Checkpoint(tmp_path / "c", every=1)
    checkpoint.save(3, state)
    for path in sorted((tmp_path / "c").rglob("*")):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(b"\x00" * (path.stat().st_size // 2))
    assert checkpoint.restore(state) is None
    checkpoint.save(4, state)
    np.testing.assert_array_equal(checkpoint.restore(state)["w"], state["w"])


def test_members_of_an_archive_are_plain_files(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as packed:
        link = tarfile.TarInfo("f/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        packed.addfile(link)
    with tarfile.open(path) as packed, pytest.raises(ValueError, match="is no plain file"):
        _member(packed, "f/link")


def test_settings_and_labels_without_meaning_are_refused():
    for wrong in (0, -5, 5000, 1.5, True):
        with pytest.raises(ValueError, match="`test` must be a number of images"):
            digits(test=wrong)
    with pytest.raises(ValueError, match="`steps` must be a whole number"):
        Plan(steps=1.5)
    with pytest.raises(ValueError, match="`width` must be a whole number of at least 1, got 0"):
        network("plain", digits(), width=0)
    x, y = np.zeros((3, 4), np.float32), np.arange(3)
    for labels in (np.array(["a", "b", "c"]), np.array([0, 1, 2**40]), np.array([0, 1, 2 * 10**9]), y - 1, y * 0.5):
        with pytest.raises(ValueError, match="`train_y` must hold integer labels from 0"):
            images_from_arrays(x, labels, x, y)
