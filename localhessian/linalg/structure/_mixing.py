"""The one product in which variables meet constants: u = A w, from a dot product or a convolution of a program."""

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from localhessian.linalg.structure._dependence import Declined, Dependent
from localhessian.linalg.structure._inputs import Inputs


@dataclasses.dataclass
class Grid:
    """u[place, channel] = inputs[group[channel], place] . v[entries[channel]]."""

    inputs: list[Inputs]
    """A of each group, (places, d)."""
    entries: np.ndarray
    """(channels, d): which variables."""
    group: np.ndarray
    """(channels,)."""

    @property
    def places(self) -> int:
        """Positions of all samples, or rows of a constant matrix."""
        return self.inputs[0].shape[0]

    @property
    def channels(self) -> int:
        """Columns of u."""
        return len(self.entries)

    def apply(self, v: np.ndarray) -> np.ndarray:
        """u of variables v, (channels, places)."""
        u = np.empty((self.channels, self.places))
        for group, inputs in enumerate(self.inputs):
            mine = np.flatnonzero(self.group == group)
            of_group = v[self.entries[mine]]
            for part, rows in inputs.chunks():
                u[mine, part] = of_group @ rows.T
        return u

    def with_bias(self, entries: np.ndarray) -> None:
        """Append a 1 to every input, for a variable of each channel."""
        for inputs in self.inputs:
            inputs.add_ones()
        self.entries = np.concatenate([self.entries, entries[:, None]], axis=1)


def of_dot(eqn: Any, dependent: Dependent, constant: np.ndarray, first: bool) -> tuple[Grid, np.ndarray, np.ndarray]:
    """The grid of a dot product, and (place, channel) of each of its results; `first`: the variables come first."""
    (contract_l, contract_r), (batch_l, batch_r) = eqn.params["dimension_numbers"]
    mine, theirs = ((contract_l, batch_l), (contract_r, batch_r))[:: 1 if first else -1]
    entries, scale = _entries(dependent)
    own_free = [axis for axis in range(entries.ndim) if axis not in (*mine[0], *mine[1])]
    free = [axis for axis in range(constant.ndim) if axis not in (*theirs[0], *theirs[1])]
    batch = [entries.shape[axis] for axis in mine[1]]
    shape_own, shape_free = [entries.shape[axis] for axis in own_free], [constant.shape[axis] for axis in free]
    groups, depth = math.prod(batch), math.prod(entries.shape[axis] for axis in mine[0])
    each = entries.transpose(*mine[1], *own_free, *mine[0]).reshape(-1, depth)
    each_group = constant.transpose(*theirs[1], *free, *theirs[0]).reshape(groups, -1, depth)
    inputs = [Inputs(matrix, 1, scale) for matrix in each_group]
    group = np.repeat(np.arange(groups), math.prod(shape_own))
    channel = np.arange(len(each), dtype=np.int32).reshape((*batch, *shape_own))
    place = np.arange(each_group.shape[1], dtype=np.int32).reshape(shape_free)
    ones_own, ones_free, ones_batch = ([1] * len(shape) for shape in (shape_own, shape_free, batch))
    if first:
        channel = channel.reshape((*channel.shape, *ones_free))
        place = place.reshape((*ones_batch, *ones_own, *shape_free))
    else:
        channel = channel.reshape((*batch, *ones_free, *shape_own))
        place = place.reshape((*ones_batch, *shape_free, *ones_own))
    return Grid(inputs, each, group), place, channel


def of_convolution(
    eqn: Any, kernel: Dependent, images: np.ndarray, max_bytes: float
) -> tuple[Grid, np.ndarray, np.ndarray]:
    """The grid of a convolution of constant images by a kernel of variables, by unfolding."""
    p = eqn.params
    if p["batch_group_count"] != 1:
        raise Declined("its convolution groups samples")
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    entries, scale = _entries(kernel)
    entries = entries.transpose(numbers.rhs_spec)  # (out, in / groups, *window)
    images = images.transpose(numbers.lhs_spec)  # (n, in, *space)
    images = images.reshape(len(images), groups, -1, *images.shape[2:])
    patches = unfolded(
        images, entries.shape[2:], p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"]
    )
    dims = entries.ndim - 2
    n, space = len(images), patches.shape[3 : 3 + dims]
    # (n, groups, in / groups, *space, *window) to (groups, n, *space, in / groups, *window)
    order = (1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
    inputs = [Inputs(view, 1 + dims, scale, max_bytes / groups) for view in patches.transpose(order)]
    channels = len(entries)
    place = np.arange(n * math.prod(space), dtype=np.int32).reshape(n, 1, *space)
    channel = np.arange(channels, dtype=np.int32).reshape(1, channels, *[1] * len(space))
    back = np.argsort(numbers.out_spec)
    group = np.repeat(np.arange(groups), channels // groups)
    return Grid(inputs, entries.reshape(channels, -1), group), place.transpose(back), channel.transpose(back)


def unfolded(
    images: Any, window: Any, strides: Any, padding: Any, image_dilation: Any, window_dilation: Any
) -> np.ndarray:
    """Windows of images, (n, groups, c, *space) to (n, groups, c, *out, *window); a view where nothing is padded."""
    lead = (slice(None),) * 3
    if any(step != 1 for step in image_dilation):
        spread = [step * (size - 1) + 1 for size, step in zip(images.shape[3:], image_dilation, strict=True)]
        wide = np.zeros((*images.shape[:3], *spread), images.dtype)
        wide[(*lead, *(slice(None, None, step) for step in image_dilation))] = images
        images = wide
    cropped = (slice(max(-low, 0), n - max(-high, 0)) for n, (low, high) in zip(images.shape[3:], padding, strict=True))
    added = ((max(low, 0), max(high, 0)) for low, high in padding)
    images = np.pad(images[(*lead, *cropped)], [(0, 0)] * 3 + list(added))
    reach = [(size - 1) * step + 1 for size, step in zip(window, window_dilation, strict=True)]
    views = sliding_window_view(images, reach, axis=tuple(range(3, images.ndim)))
    places = (slice(None, None, step) for step in strides)
    inside = (slice(None, None, step) for step in window_dilation)
    return views[(*lead, *places, *inside)]


def _entries(dependent: Dependent) -> tuple[np.ndarray, float]:
    """The variables in an operand that is nothing but variables, and the one number that multiplies them all."""
    if not dependent.is_single:
        raise Declined("what enters its product is not the variables themselves")
    coefficient, entry = dependent.single[0]
    scale = float(np.ravel(coefficient)[0])
    if not np.all(coefficient == scale):
        raise Declined("it scales the variables one by one before their product")
    return np.broadcast_to(entry, dependent.shape), scale
