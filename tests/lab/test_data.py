"""Loaders against hand-made files; augmentation against numpy."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import tarfile
import threading

import jax
import numpy as np
import pytest

from localhessian.lab import Augmentation, Images, digits, images_from_arrays, images_from_npz, network
from localhessian.lab._cifar import CIFAR10, CIFAR100, load_binary, load_images, unpack

pytestmark = pytest.mark.once

SMALL10 = dataclasses.replace(CIFAR10, train_records=3, test_records=2)
SMALL100 = dataclasses.replace(CIFAR100, train_records=3, test_records=2)


def write(folder, layout, labels=lambda record: record % 10):
    """The files of a layout, byte by byte: pixel (row, column, channel) of record i is a function of these four."""
    folder.mkdir(parents=True, exist_ok=True)
    for names, records in ((layout.train, layout.train_records), (layout.test, layout.test_records)):
        for name in names:
            content = bytearray()
            for i in range(records):
                coarse = [19] if layout.label_bytes == 2 else []
                content += bytes([*coarse, labels(i)])
                for channel in range(3):
                    content += bytes((i + 7 * channel + 3 * r + c) % 256 for r in range(32) for c in range(32))
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("layout", [SMALL10, SMALL100], ids=["cifar10", "cifar100"])
def test_the_binary_layout_is_read_as_it_is_written(layout, tmp_path):
    write(tmp_path / layout.folder, layout, labels=lambda i: layout.classes - 1 - i)
    images = load_binary(layout, tmp_path)
    assert images.train_x.shape == (3 * len(layout.train), 32, 32, 3)
    assert images.test_x.dtype == np.uint8
    i, r, c, channel = np.ogrid[:2, :32, :32, :3]
    np.testing.assert_array_equal(images.test_x, (i + 7 * channel + 3 * r + c) % 256)
    np.testing.assert_array_equal(images.test_y, [layout.classes - 1, layout.classes - 2])
    assert (images.train_y.dtype, images.classes) == (np.int32, layout.classes)
    again = load_binary(layout, tmp_path / layout.folder)  # the folder of the files themselves
    np.testing.assert_array_equal(again.train_x, images.train_x)


def test_a_truncated_file_is_named_with_its_sizes(tmp_path):
    place = write(tmp_path, SMALL10)
    path = place / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"data_batch_4.bin` has 9214 bytes, expected 9219 \(3 records of 3073\)"):
        load_binary(SMALL10, tmp_path)


def test_a_label_that_does_not_exist_is_named(tmp_path):
    write(tmp_path, SMALL10, labels=lambda i: 8 + i)
    with pytest.raises(ValueError, match=r"data_batch_1.bin`: record 2 has the label 10, expected less than 10"):
        load_binary(SMALL10, tmp_path)


def test_missing_files_are_named(tmp_path):
    (write(tmp_path, SMALL100) / "test.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no test.bin: unpack cifar-100-binary.tar.gz there"):
        load_binary(SMALL100, tmp_path)
    with pytest.raises(ValueError, match="there are no images 'mnist'"):
        load_images("mnist")


@pytest.fixture
def served(tmp_path):
    """The archive of a small layout, served on the loopback; and how often it was asked for."""
    write(tmp_path / "made" / SMALL100.folder, SMALL100)
    with tarfile.open(tmp_path / "made" / "small.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / SMALL100.folder, SMALL100.folder)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path / "made"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        md5 = hashlib.md5((tmp_path / "made" / "small.tar.gz").read_bytes()).hexdigest()
        url = f"http://127.0.0.1:{server.server_port}/small.tar.gz"
        yield dataclasses.replace(SMALL100, url=url, md5=md5), asked
        server.shutdown()
        thread.join()


def test_mutations_of_an_archive_give_the_images_or_one_sentence(served, tmp_path):
    layout, _ = served
    archive, random, refused = tmp_path / "mutated.tar.gz", np.random.default_rng(0), []
    content = (tmp_path / "made" / "small.tar.gz").read_bytes()
    plain = gzip.decompress(content)  # of which every bit is one of tar's or of the files'
    expected = load_binary(SMALL100, tmp_path / "made")
    for i in range(200):
        changed = bytearray(plain if i % 2 else content)
        changed[random.integers(len(changed) if i % 4 else 300)] ^= 1 << random.integers(8)
        archive.write_bytes(changed[: random.integers(len(changed))] if i % 5 == 0 else changed)
        place = tmp_path / "unpacked" / str(i)
        try:
            unpack(archive, layout, place)
            images = load_binary(layout, place)
        except ValueError as error:
            refused.append(str(error))
        else:  # a file has no checksum of its own inside a plain archive: one pixel or label is another
            assert sum(np.sum(a != b) for a, b in zip(images, expected, strict=True)) <= i % 2
    assert len(refused) > 80
    assert all(" is no whole archive of " in sentence or "download it again" in sentence for sentence in refused)


def test_download_once_with_a_checksum(served, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    layout, asked = served
    with pytest.raises(ValueError, match="hash"):
        load_binary(dataclasses.replace(layout, md5="0" * 32))
    images = load_binary(layout)
    again = load_binary(layout)
    assert len(asked) == 2
    expected = load_binary(SMALL100, tmp_path / "made")
    for got in (images, again):
        np.testing.assert_array_equal(got.test_x, expected.test_x)


def test_arrays_of_ones_own(tmp_path, dtype):
    x, y = np.ones((4, 3), np.float64), np.array([0, 1, 1, 2], np.int64)
    images = images_from_arrays(x, y, x[:1], y[:1])
    assert (images.train_x.dtype, images.train_y.dtype, images.classes) == (dtype, np.int32, 3)
    np.savez(tmp_path / "own.npz", **images._asdict())
    for got, expected in zip(images_from_npz(tmp_path / "own.npz"), images, strict=True):
        np.testing.assert_array_equal(got, expected)
    np.savez(tmp_path / "part.npz", train_x=x)
    with pytest.raises(ValueError, match="it holds train_x, but not train_y, test_x, test_y"):
        images_from_npz(tmp_path / "part.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4 no")
    with pytest.raises(ValueError, match=r"bad.npz` is no file of images"):
        images_from_npz(tmp_path / "bad.npz")


X, Y = np.ones((4, 3), np.float32), np.zeros(4, int)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ((X, Y[:3], X, Y), r"`train_x` and `train_y` must have the shapes \(n, ...\) and \(n,\)"),
        ((X, Y, X, Y - 1), "`test_y` must hold integer labels from 0, and less than 1048576, got -1 to -1"),
        ((X, Y.astype(float), X, Y), "`train_y` must hold integer labels from 0, got float64"),
        ((X, Y, X[:, :2], Y), "must hold samples of one kind"),
        ((X * np.nan, Y, X, Y), "`train_x` holds values that are not finite"),
        ((X.astype(int), Y, X, Y), "`train_x` must hold floats or uint8 images, got int64"),
        (
            (np.zeros((4, 3, 8, 8), np.uint8), Y, X, Y),
            r"`train_x` of .* looks like .*: use `numpy.moveaxis\(x, 1, -1\)`",
        ),
    ],
)
def test_arrays_that_do_not_fit(arrays, sentence):
    with pytest.raises(ValueError, match=sentence):
        images_from_arrays(*arrays)


def test_gray_images_get_a_channel():
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 6)).astype(np.uint8)
    images = images_from_arrays(x, Y, x[:2], Y[:2])
    np.testing.assert_array_equal(images.train_x, x[..., None])
    assert Augmentation.standard(images).mean == pytest.approx([x.mean() / 255])


def test_networks_say_which_samples_they_take():
    x = np.zeros((4, 5, 6), np.float32)
    images = images_from_arrays(x, Y, x, Y)
    for name in ("plain", "vgg11-bn", "resnet20-by4"):
        with pytest.raises(
            ValueError, match=rf"'{name}' convolves .* the shape \(5, 6\); if .* gray .* `x\[..., None\]`"
        ):
            network(name, images)
        with pytest.raises(ValueError, match=rf"'{name}' convolves images .* these samples have the shape \(3,\)\."):
            network(name, images_from_arrays(X, Y, X, Y))
    dot = x[:, :1, :, None]
    with pytest.raises(ValueError, match="'vgg11' halves its images, and these are of 1 x 6"):
        network("vgg11", images_from_arrays(dot, Y, dot, Y))
    assert network("tanh-2", images).chain.names == ("dense1", "dense2", "head")


def test_validation_takes_from_training_only():
    data = Images(np.arange(50)[:, None], np.arange(50), np.arange(100, 120)[:, None], np.arange(20))
    tuning, final = data.validation(10)
    assert sorted([*tuning.train_x[:, 0], *tuning.test_x[:, 0]]) == list(range(50))
    assert len(tuning.test_x) == 10
    np.testing.assert_array_equal(final.train_x, tuning.train_x)
    np.testing.assert_array_equal(final.test_x, data.test_x)
    np.testing.assert_array_equal(tuning.test_x[:, 0], tuning.test_y)
    with pytest.raises(ValueError, match="`validation` must be between 1 and 49 of the 50 training samples, got 50"):
        data.validation(50)


def test_a_part_keeps_its_labels():
    data = Images(np.arange(50)[:, None], np.arange(50), np.arange(20)[:, None], np.arange(20))
    part = data.take(7)
    assert len(set(part.train_y.tolist())) == 7
    np.testing.assert_array_equal(part.train_x[:, 0], part.train_y)
    np.testing.assert_array_equal(part.test_x, data.test_x)
    with pytest.raises(ValueError, match="`train` must be between 1 and the 50 samples there are, got 51"):
        data.take(51)


def test_augmentation_is_a_crop_and_a_flip_of_the_normalized_image(key):
    x = np.random.default_rng(0).integers(0, 256, (64, 5, 6, 2)).astype(np.uint8)
    augment = Augmentation.standard(Images(x, Y, x, Y), pad=2)
    scaled = x / 255
    mean, deviation = scaled.mean((0, 1, 2)), scaled.std((0, 1, 2))
    np.testing.assert_allclose(augment.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(augment.deviation, deviation, rtol=1e-9)
    normal = (scaled - mean) / deviation
    np.testing.assert_allclose(augment.plain(jax.numpy.asarray(x)), normal, atol=1e-5)
    wide = np.pad(normal, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for i, image in enumerate(np.asarray(jax.jit(augment)(key, x))):
        crops = {
            (r, c, flip): wide[i, r : r + 5, c : c + 6][:, :: -1 if flip else 1]
            for r in range(5) for c in range(5) for flip in (False, True)
        }  # fmt: skip
        (found,) = [place for place, crop in crops.items() if np.abs(crop - image).max() < 1e-5]
        seen.add(found)
    assert {r for r, _, _ in seen} == {c for _, c, _ in seen} == set(range(5))
    assert {flip for _, _, flip in seen} == {False, True}


def test_floats_are_taken_as_they_are():
    data = digits()
    augment = Augmentation.standard(data, pad=0, flip=False)
    x = jax.numpy.asarray(data.test_x[:3])
    np.testing.assert_array_equal(augment(jax.random.key(0), x), data.test_x[:3])


def test_samples_that_are_no_images_are_normalized_as_one_and_never_cropped():
    x = np.array([[0, 10], [0, 20]], np.uint8)
    images = images_from_arrays(x, Y[:2], x + 1, Y[:2])
    augment = Augmentation.standard(images, pad=0, flip=False)
    values = np.array([0, 10, 0, 20]) / 255
    assert (augment.mean, augment.deviation) == (pytest.approx([values.mean()]), pytest.approx([values.std()]))
    # A column that never changes in training is no reason for large numbers in testing.
    np.testing.assert_allclose(
        augment.plain(jax.numpy.asarray(x)).ravel(), (values - values.mean()) / values.std(), 1e-5
    )
    sentence = r"crops and flips are for images of shape \(n, height, width, channels\), got \(2, 2\): use `pad=0"
    with pytest.raises(ValueError, match=sentence):
        Augmentation.standard(images)
    with pytest.raises(ValueError, match=sentence):
        Augmentation(flip=True)(jax.random.key(0), jax.numpy.asarray(x))
