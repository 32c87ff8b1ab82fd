"""Images to train on: the digits that need no download, and arrays of one's own."""

import importlib.resources
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from localhessian._archive import opened
from localhessian._brief import by_value

MAX_BYTES = 2**34
"""Of a file of images, unpacked."""
IMAGE_AXES = 4
"""(n, height, width, channels)"""
MAX_CLASSES = 2**20
"""A label beyond is no class, and would take the memory of as many outputs."""
_MOST_COLORS = 4
"""Red, green, blue and how opaque."""


@by_value
class Images(NamedTuple):
    """Samples and integer labels, for training and for testing.

    Floating-point samples are used as they are; `uint8` images are normalized on the device, by an `Augmentation`.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    @property
    def classes(self) -> int:
        """The largest label plus one."""
        return int(max(self.train_y.max(), self.test_y.max())) + 1

    def take(self, train: int | None = None, test: int | None = None, *, seed: int = 0) -> "Images":
        """A random part: `train` and `test` samples, None for all; the same for the same seed.

        Raises:
            ValueError: There are not so many.
        """
        train_x, train_y = _part("train", self.train_x, self.train_y, train, seed)
        test_x, test_y = _part("test", self.test_x, self.test_y, test, seed)
        return Images(train_x, train_y, test_x, test_y)

    def validation(self, count: int, *, seed: int = 0) -> tuple["Images", "Images"]:
        """Set `count` random training samples aside for tuning.

        Returns:
            For tuning, with the samples set aside as its testing part; and for the final runs, with the same training
            part and the true testing part.

        Raises:
            ValueError: `count` leaves nothing to train on.
        """
        n = len(self.train_x)
        if not 0 < count < n:
            raise ValueError(f"`validation` must be between 1 and {n - 1} of the {n} training samples, got {count}.")
        order = np.random.default_rng([seed, n]).permutation(n)
        aside, rest = np.sort(order[:count]), np.sort(order[count:])
        train_x, train_y = self.train_x[rest], self.train_y[rest]
        tuning = Images(train_x, train_y, self.train_x[aside], self.train_y[aside])
        return tuning, Images(train_x, train_y, self.test_x, self.test_y)


def digits(test: int = 360) -> Images:
    """The UCI digits: 1,797 images of 8 x 8, shuffled once, the last `test` of them for testing.

    In NHWC in the default float dtype, mean 0 and deviation 1 over the training part.

    Raises:
        ValueError: `test` leaves nothing to train or test on.

    Source: Alpaydin & Kaynak, doi:10.24432/C50P49, CC BY 4.0; shipped in the package.
    """
    with (importlib.resources.files("localhessian.lab") / "data" / "digits.npz").open("rb") as file:
        packed = np.load(file, allow_pickle=False)
        images, labels = packed["images"], packed["labels"].astype(np.int32)
    if np.asarray(test).dtype.kind not in "iu" or not 0 < test < len(images):
        raise ValueError(f"`test` must be a number of images between 1 and {len(images) - 1}, got {test!r}.")
    order = np.random.default_rng(0).permutation(len(images))
    x, y = images[order, :, :, None].astype(jnp.result_type(float)), labels[order]
    train = x[:-test]
    x = (x - train.mean()) / train.std()
    return Images(x[:-test], y[:-test], x[-test:], y[-test:])


def images_from_arrays(train_x: Any, train_y: Any, test_x: Any, test_y: Any) -> Images:
    """Arrays of your own, checked.

    Args:
        train_x: Samples on the leading axis; for convolutions `(n, height, width, channels)`. `uint8` images, or floats
            normalized as you like. `uint8` images `(n, height, width)` are gray, and get an axis of one channel.
        train_y: Integer labels from 0, shape `(n,)`.
        test_x: As `train_x`.
        test_y: As `train_y`.

    Returns:
        Labels as int32, floats in the default float dtype.

    Raises:
        ValueError: Shapes that do not fit, bytes with the channels first, labels that are no integers from 0, or
            samples that are not finite.
    """
    train_x, train_y = _checked("train", train_x, train_y)
    test_x, test_y = _checked("test", test_x, test_y)
    if train_x.shape[1:] != test_x.shape[1:] or train_x.dtype != test_x.dtype:
        raise ValueError(
            f"`train_x` and `test_x` must hold samples of one kind, got {train_x.dtype}{train_x.shape[1:]} and "
            f"{test_x.dtype}{test_x.shape[1:]}."
        )
    return Images(train_x, train_y, test_x, test_y)


def images_from_npz(path: str | Path) -> Images:
    """The arrays `train_x`, `train_y`, `test_x`, `test_y` of an `.npz` file (no pickle), as `images_from_arrays`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, claims to be larger than 16 GiB, or an array is missing or does not fit.
    """
    with opened(path, MAX_BYTES, "is no file of images.") as archive:
        missing = [name for name in Images._fields if name not in archive.names]
        if missing:
            raise ValueError(
                f"it holds {', '.join(archive.names) or 'nothing'}, but not {', '.join(missing)}: write it with "
                "`numpy.savez(path, train_x=..., train_y=..., test_x=..., test_y=...)`"
            )
        arrays = [archive.array(name, "iufb") for name in Images._fields]
    return images_from_arrays(*arrays)


def _part(name: str, x: np.ndarray, y: np.ndarray, count: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if count is None:
        return x, y
    if not 0 < count <= len(x):
        raise ValueError(f"`{name}` must be between 1 and the {len(x)} samples there are, got {count}.")
    chosen = np.sort(np.random.default_rng([seed, len(x)]).permutation(len(x))[:count])
    return x[chosen], y[chosen]


def check_images(network: str, shape: tuple[int, ...]) -> None:
    """Whether a network that convolves can take samples of this shape.

    Raises:
        ValueError: They are no images.
    """
    if len(shape) != IMAGE_AXES - 1:
        gray = "; if they are gray images, give them an axis of one channel, `x[..., None]`" if len(shape) == 2 else ""
        raise ValueError(
            f"{network!r} convolves images of shape (height, width, channels), and these samples have the shape "
            f"{shape}{gray}."
        )


def _checked(name: str, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or not len(x):
        raise ValueError(
            f"`{name}_x` and `{name}_y` must have the shapes (n, ...) and (n,) with n >= 1, got {x.shape} and "
            f"{y.shape}."
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"`{name}_y` must hold integer labels from 0, got {y.dtype}.")
    if y.min() < 0 or y.max() >= MAX_CLASSES:
        raise ValueError(
            f"`{name}_y` must hold integer labels from 0, and less than {MAX_CLASSES}, got {y.min()} to {y.max()}."
        )
    if np.issubdtype(x.dtype, np.floating):
        x = x.astype(jnp.result_type(float))
        if not np.isfinite(x).all():
            raise ValueError(f"`{name}_x` holds values that are not finite: remove or replace them.")
    elif x.dtype != np.uint8:
        raise ValueError(f"`{name}_x` must hold floats or uint8 images, got {x.dtype}.")
    elif x.ndim == IMAGE_AXES - 1:
        x = x[..., None]
    elif x.ndim == IMAGE_AXES and x.shape[1] in (1, 3) and x.shape[-1] > _MOST_COLORS:
        raise ValueError(
            f"`{name}_x` of shape {x.shape} looks like (n, channels, height, width), and images are (n, height, width, "
            "channels): use `numpy.moveaxis(x, 1, -1)`."
        )
    return x, y.astype(np.int32)
