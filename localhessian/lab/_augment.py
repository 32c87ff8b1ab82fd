"""Normalization and augmentation of images on the device, inside the compiled step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._types import Array, Key
from localhessian.lab._data import IMAGE_AXES, Images


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What happens to a batch before the network sees it: a pure function, the same for the same key.

    `uint8` images become (x / 255 - mean) / deviation in the default float dtype; floats stay as they are. For training
    each image is then shifted, cut out at a random place of itself with `pad` zeros on every side, and with `flip`
    mirrored left to right by half a chance.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from localhessian.lab import Augmentation
        >>> x = jnp.arange(2 * 4 * 4).reshape(2, 4, 4, 1).astype(jnp.uint8)
        >>> Augmentation(pad=1, flip=True)(jax.random.key(0), x).shape
        (2, 4, 4, 1)
    """

    mean: tuple[float, ...] = (0.0,)
    """Of each channel, or one of all, of images in [0, 1]."""
    deviation: tuple[float, ...] = (1.0,)
    pad: int = 0
    flip: bool = False

    @classmethod
    def standard(cls, images: Images, *, pad: int = 4, flip: bool = True) -> "Augmentation":
        """Random crops and flips, and the mean and deviation of each channel of the training images.

        Of `uint8` samples that are no images `(n, height, width, channels)` it is one mean and one deviation.

        Raises:
            ValueError: Crops or flips of samples that are no images.
        """
        if pad or flip:
            _check_images(images.train_x.shape)
        if images.train_x.dtype != np.uint8:
            return cls(pad=pad, flip=flip)
        # Moments from counts of the 256 values: no float copy of the whole set.
        channels = np.moveaxis(images.train_x, -1, 0) if images.train_x.ndim == IMAGE_AXES else images.train_x[None]
        counts = np.stack([np.bincount(c.ravel(), minlength=256) for c in channels])
        share, value = counts / channels[0].size, np.arange(256) / 255
        mean = share @ value
        deviation = np.sqrt(share @ value**2 - mean**2)
        return cls(tuple(mean.tolist()), tuple(np.maximum(deviation, 1e-6).tolist()), pad, flip)

    def plain(self, x: Array) -> Array:
        """Normalized, not augmented: for testing."""
        if jnp.issubdtype(x.dtype, jnp.floating):
            return x
        dtype = jnp.result_type(float)
        last = (1,) * (x.ndim - 1) + (-1,)
        mean, deviation = (jnp.asarray(v, dtype).reshape(last) for v in (self.mean, self.deviation))
        return (x.astype(dtype) / 255 - mean) / deviation

    def __call__(self, key: Key, x: Array) -> Array:
        """Normalized and augmented; images `(n, height, width, channels)`.

        Raises:
            ValueError: Crops or flips of samples that are no images.
        """
        if self.pad or self.flip:
            _check_images(x.shape)
        x = self.plain(x)
        shift_key, flip_key = jax.random.split(key)
        if self.pad:
            x = self._shifted(shift_key, x)
        if self.flip:
            mirrored = jax.random.bernoulli(flip_key, 0.5, (x.shape[0], 1, 1, 1))
            x = jnp.where(mirrored, x[:, :, ::-1], x)
        return x

    def _shifted(self, key: Key, x: Array) -> Array:
        n, height, width, channels = x.shape
        wide = jnp.pad(x, ((0, 0), (self.pad, self.pad), (self.pad, self.pad), (0, 0)))
        corners = jax.random.randint(key, (n, 2), 0, 2 * self.pad + 1)

        def cut(image: Array, corner: Array) -> Array:
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

        return jax.vmap(cut)(wide, corners)


def _check_images(shape: tuple[int, ...]) -> None:
    if len(shape) != IMAGE_AXES:
        raise ValueError(
            f"crops and flips are for images of shape (n, height, width, channels), got {shape}: use "
            "`pad=0, flip=False` (on the command line `--no-augment`)."
        )
