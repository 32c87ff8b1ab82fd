"""Images that need no download."""

import importlib.resources
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Images(NamedTuple):
    """Images in NHWC in the default float dtype, mean 0 and deviation 1 over the training part; labels int32."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def digits(test: int = 360) -> Images:
    """The UCI digits: 1,797 images of 8 x 8, shuffled once, the last `test` of them for testing.

    Source: Alpaydin & Kaynak, doi:10.24432/C50P49, CC BY 4.0; shipped in the package.
    """
    with (importlib.resources.files("localhessian.study") / "data" / "digits.npz").open("rb") as file:
        packed = np.load(file, allow_pickle=False)
        images, labels = packed["images"], packed["labels"].astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = images[order, :, :, None].astype(jnp.zeros(()).dtype), labels[order]
    train = x[:-test]
    x = (x - train.mean()) / train.std()
    return Images(x[:-test], y[:-test], x[-test:], y[-test:])
