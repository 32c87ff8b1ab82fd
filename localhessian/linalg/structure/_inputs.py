"""The data that variables are multiplied with, as a tall matrix that need not be held whole."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

CHUNK = 8192
"""Rows that are unfolded, or in float64, at a time."""


class Inputs:
    """A, (places, d): a matrix, or a view of images whose rows are patches, unfolded when they are taken."""

    def __init__(self, view: np.ndarray, dims: int, scale: float = 1.0, max_bytes: float = math.inf) -> None:
        """Of a view with places on the first `dims` axes; unfold at once where that takes no more than `max_bytes`."""
        self.lead, self.scale, self.ones = view.shape[:dims], scale, 0
        self.depth = math.prod(view.shape[dims:])
        if view.size * view.itemsize <= max_bytes:
            self.lead = (math.prod(self.lead),)
            view = view.reshape(self.lead[0], self.depth)
        self._view, self.dtype = view, view.dtype
        self.nbytes = view.nbytes if view.ndim == 2 else 0
        """That are held beside the images."""

    @property
    def shape(self) -> tuple[int, int]:
        """Places, and columns with those of ones."""
        return math.prod(self.lead), self.depth + self.ones

    def add_ones(self) -> None:
        """Append a 1 to every row, for a bias."""
        self.ones += 1

    def take(self, places: Any) -> np.ndarray:
        """Rows in float64; a slice or indices."""
        if isinstance(places, slice):
            places = np.arange(self.shape[0])[places]
        where = (places,) if len(self.lead) == 1 else np.unravel_index(places, self.lead)
        out = np.empty((len(places), self.shape[1]))
        out[:, : self.depth] = self._view[where].reshape(len(places), self.depth)
        if self.scale != 1:
            out[:, : self.depth] *= self.scale
        out[:, self.depth :] = 1
        return out

    def chunks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows, some at a time."""
        for start in range(0, self.shape[0], CHUNK):
            part = slice(start, min(start + CHUNK, self.shape[0]))
            yield part, self.take(part)

    def combined(self, weights: np.ndarray) -> np.ndarray:
        """Weights A, for (k, places) weights."""
        return sum((weights[:, part] @ rows for part, rows in self.chunks()), np.zeros((len(weights), self.shape[1])))
