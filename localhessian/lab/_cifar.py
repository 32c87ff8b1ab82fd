"""CIFAR-10 and CIFAR-100 in their official binary layout: read, verified, and downloaded where they are not there."""

import dataclasses
import tarfile
from pathlib import Path

import numpy as np

from localhessian._archive import UNREADABLE
from localhessian._files import whole
from localhessian._optional import optional
from localhessian.lab._data import Images, digits, images_from_npz

_SIDE, _CHANNELS = 32, 3
_PIXELS = _SIDE * _SIDE * _CHANNELS


@dataclasses.dataclass(frozen=True)
class BinaryLayout:
    """Files of records: `label_bytes` labels, of which the last counts, then the image channel by channel."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    train_records: int
    """In each training file."""
    test_records: int
    label_bytes: int
    classes: int
    url: str
    md5: str


MAX_BYTES = 2**28
"""Of one file in an archive; the largest has 154 million."""
CIFAR10 = BinaryLayout(
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    train_records=10_000,
    test_records=10_000,
    label_bytes=1,
    classes=10,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
)
CIFAR100 = BinaryLayout(
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    train_records=50_000,
    test_records=10_000,
    label_bytes=2,
    classes=100,
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
)


def cifar10(folder: str | Path | None = None) -> Images:
    """CIFAR-10: 50,000 + 10,000 images of 32 x 32 in ten classes, as `uint8` NHWC.

    Args:
        folder: Where `cifar-10-batches-bin` or its files lie. Default: a cache, filled by a download (162 MB, needs
            pooch: `pip install 'localhessian[train]'`).

    Raises:
        FileNotFoundError: A file is not in `folder`.
        ValueError: A file has not its size, or a label that does not exist; the archive has not its checksum.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    return load_binary(CIFAR10, folder)


def cifar100(folder: str | Path | None = None) -> Images:
    """CIFAR-100 with its fine labels: 50,000 + 10,000 images in a hundred classes; as `cifar10`.

    Args:
        folder: Where `cifar-100-binary` or its files lie; default a cache, filled by a download (169 MB).

    Raises:
        FileNotFoundError: A file is not in `folder`.
        ValueError: A file has not its size, or a label that does not exist; the archive has not its checksum.
    """
    return load_binary(CIFAR100, folder)


def load_images(name: str, folder: str | Path | None = None) -> Images:
    """Images by name: `digits`, `cifar10`, `cifar100`, or the path of an `.npz` file.

    Raises:
        ValueError: Another name, or what was read is not what it should be.
        FileNotFoundError: There is no such file.
    """
    named = {"cifar10": CIFAR10, "cifar100": CIFAR100}
    if name in named:
        return load_binary(named[name], folder)
    if name == "digits":
        return digits()
    if name.endswith(".npz"):
        return images_from_npz(name)
    raise ValueError(f"there are no images {name!r}: use `digits`, `cifar10`, `cifar100`, or a path that ends in .npz.")


def load_binary(layout: BinaryLayout, folder: str | Path | None = None) -> Images:
    """Read and verify the files of a layout; without a folder from the cache."""
    place = _downloaded(layout) if folder is None else _found(layout, Path(folder))
    try:
        train = [_read(place / name, layout, layout.train_records) for name in layout.train]
        test = [_read(place / name, layout, layout.test_records) for name in layout.test]
    except ValueError:
        if folder is None:  # of the cache: taken out of the archive again by the next call
            for name in (*layout.train, *layout.test):
                (place / name).unlink(missing_ok=True)
        raise
    return Images(*(np.concatenate(parts) for pair in (train, test) for parts in zip(*pair, strict=True)))


def _read(path: Path, layout: BinaryLayout, records: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `(n, 32, 32, 3)` and labels of one file."""
    size = layout.label_bytes + _PIXELS
    found = path.stat().st_size
    if found != records * size:
        raise ValueError(
            f"`{path}` has {found} bytes, expected {records * size} ({records} records of {size}): it is truncated or "
            "of another data set; download it again."
        )
    table = np.fromfile(path, np.uint8).reshape(records, size)
    labels = table[:, layout.label_bytes - 1].astype(np.int32)
    wrong = np.flatnonzero(labels >= layout.classes)
    if len(wrong):
        raise ValueError(
            f"`{path}`: record {wrong[0]} has the label {labels[wrong[0]]}, expected less than {layout.classes}: the "
            "file is damaged or of another data set; download it again."
        )
    pixels = table[:, layout.label_bytes :].reshape(records, _CHANNELS, _SIDE, _SIDE)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels


def _found(layout: BinaryLayout, folder: Path) -> Path:
    names = (*layout.train, *layout.test)
    place = folder / layout.folder if (folder / layout.folder).is_dir() else folder
    missing = [name for name in names if not (place / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"`{place}` has no {', '.join(missing)}: unpack {layout.url.rsplit('/', 1)[1]} there (the binary version), "
            "or leave `folder` out to download it."
        )
    return place


def _downloaded(layout: BinaryLayout) -> Path:
    """The cache, filled if it is not. Only the files of the layout leave the archive, each complete or not at all."""
    pooch = optional("pooch")
    cache = Path(pooch.os_cache("localhessian"))
    place = cache / layout.folder
    names = (*layout.train, *layout.test)
    if all((place / name).is_file() for name in names):
        return place
    archive = pooch.retrieve(layout.url, known_hash=f"md5:{layout.md5}", path=cache, progressbar=False)
    unpack(Path(archive), layout, place)
    return place


def unpack(archive: Path, layout: BinaryLayout, place: Path) -> None:
    """The files of a layout out of its archive.

    Raises:
        ValueError: It is damaged, or none.
    """
    try:
        with tarfile.open(archive) as packed:
            contents = {name: _member(packed, f"{layout.folder}/{name}") for name in (*layout.train, *layout.test)}
            while packed.fileobj.read(2**20):
                pass  # to the end, where the checksum is
    except (tarfile.TarError, *UNREADABLE) as error:
        raise ValueError(
            f"`{archive}` is no whole archive of {layout.folder} ({type(error).__name__}: {str(error)[:200]}): remove "
            "it, and it is downloaded again."
        ) from error
    for name, content in contents.items():
        with whole(place / name) as part:
            part.write_bytes(content)


def _member(packed: tarfile.TarFile, name: str) -> bytes:
    member = packed.getmember(name)
    if not member.isfile():  # a link may point anywhere
        raise ValueError(f"its {name} is no plain file.")
    if member.size > MAX_BYTES:
        raise ValueError(f"its {name} claims {member.size} bytes.")
    content = packed.extractfile(member)
    return b"" if content is None else content.read()
