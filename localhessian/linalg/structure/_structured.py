"""Every eigenvalue of matrices that split into small blocks."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect, expect_limit
from localhessian._mesh import is_elsewhere
from localhessian._progress import Progress, silent
from localhessian._tree import is_concrete, to_device
from localhessian._types import Array, Key
from localhessian.linalg.krylov import GolubKahan
from localhessian.linalg.operators import LinearMap, Operator, Streamed, check_operator, eps_of
from localhessian.linalg.spectra import Spectrum, SpectrumInterrupt
from localhessian.linalg.structure._assemble import ends, whole
from localhessian.linalg.structure._block_diagonal import BlockDiagonal
from localhessian.linalg.structure._dependence import Declined, TooLarge, Unconfirmed
from localhessian.linalg.structure._discover import Found, walk
from localhessian.linalg.structure._khatri_rao import KhatriRao, only_product
from localhessian.linalg.structure._layout import Layout, of_maps, of_units
from localhessian.linalg.structure._summed import Summed
from localhessian.linalg.structure._traced import spectrum_of

Structure = BlockDiagonal | KhatriRao | Summed


@dataclasses.dataclass(frozen=True)
class Structured:
    """All eigenvalues, with multiplicities, of an operator whose factor R splits into small blocks.

    The structure is found in the traced product v -> R v itself: the variables enter by one dot product or convolution,
    and what follows keeps channels (or samples) apart: activations, batch normalization in either mode, biases,
    scales, max pooling, a skip around. Then H is block diagonal, and each block is decomposed on its smaller side, from
    its Gram matrix in float64 (R in float64: by singular values of the block). Where what follows mixes channels of
    one sample only (a softmax loss), the rows of R are Kronecker products, and R R^T is cheap. A random vector
    confirms what was found against the operator's own product before it is used; where anything else is met, the
    route is declined with its reason (`lh.explain`).

    Where the ends of the spectrum are enough, `blocks=lh.GolubKahan(which="largest", k=1)` multiplies all blocks at
    once by the operator's own product, and nothing is decomposed: every block has a recurrence and a convergence of its
    own, so that values which several blocks share, or nearly share, do not slow it down, and are counted.

    As the method of `lh.trace`, `lh.frobenius_norm` and `lh.range_mean` it makes these exact, from Gram matrices alone.

    Under `jax.jit` and `jax.vmap` the structure is found when JAX traces, and the numbers come when the program runs:
    blocks from as many products as the longest has columns (or rows, where these are fewer), one column of every block
    at a time, and their singular values by Gram matrices in float64 on the CPU, elsewhere in the model's precision. A
    random vector is multiplied in the program: where R v or H v differ from the operator's own, the status is
    NOT_CONFIRMED. Of a batch of maps of which a single one does not split, each is a block. What depends on numbers is
    declined when JAX traces it: choices that the program makes by traced indices (embeddings), `blocks`. Equal blocks
    of layers without an activation are one; others are told apart.

    Cost: one walk through the linearized block on the host; Gram matrices of O(m p min(m, p)) operations and
    decompositions of O(min(m, p)^3), one for each different block of m results and p variables, on every core.
    Products: 1, or those of `blocks`. Memory: the unfolded inputs A (places x d_in), and some blocks on each core.
    Compiled: min(m, p) products at once, and singular values of O(m p min(m, p)) operations for each different block;
    memory about 5 numbers for each entry of the blocks (and each network, under `jax.vmap`).

    Args:
        max_size: Largest order of a matrix to decompose.
        max_bytes: Of memory. Patches of images that would take a quarter of it stay folded: their rows are unfolded
            anew for each block, some thousands at a time.
        max_operations: Multiplications that are affordable; 5e11 are about 20 seconds on one core.
        blocks: How each block is decomposed: None, all of it; a `GolubKahan`, its ends alone, whatever their order.

    Source: docs/theory.md, 3; Dangel et al. (2019) and Grosse & Martens (2016) for the Kronecker structure of layers.
    """

    max_size: int = 4096
    max_bytes: float = 2**31
    max_operations: float = 5e11
    blocks: GolubKahan | None = None

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        for name in ("max_size", "max_bytes", "max_operations"):
            expect_limit(name, getattr(self, name), whole=name == "max_size")
        expect("blocks", self.blocks, (GolubKahan, type(None)), "None or a `GolubKahan(...)`")

    def find(self, operator: Operator) -> Structure:
        """The structure, verified by a random vector and within the limits; `Declined` where there is none."""
        check_operator(operator)
        factor = operator.factor
        if isinstance(operator, Streamed):
            return self._of_stream(operator)
        if factor is None:
            raise Declined("it has no factor R with H = R^T R")
        if is_elsewhere(operator):
            raise Declined("only other processes have some of its numbers")
        if _is_traced(operator):
            raise Declined("its numbers are not known while JAX traces it")
        prepared = factor.prepare()
        with _followed():
            found, structure = self._walk(prepared)
            if not structure.splits:
                raise Declined("nothing in it splits")
            _verify(found, prepared)
        if self.blocks is None:
            self._check(structure)
        return structure

    def _of_stream(self, operator: Streamed) -> Structure:
        """That of a sum over a stream, by its first part; each part is verified when it comes."""
        if self.blocks is not None:
            raise Declined("`blocks` multiplies all of them at once, which a stream does not")

        def walked(prepared: LinearMap, apart: bool) -> BlockDiagonal:
            with _followed():
                found = walk(prepared, True, self.max_bytes / 4)
                structure = BlockDiagonal(found, prepared.in_size, None, self.max_bytes, apart=apart)
                _verify(found, prepared)
            return structure

        summed = Summed(operator, walked, self.max_bytes)
        if not summed.splits:
            raise Declined("nothing in it splits")
        self._check(summed)
        return summed

    def attempt(self, operator: Operator, key: Key, show: Progress = silent) -> Spectrum:
        """The whole spectrum, with numbers or in a program that JAX traces; `Declined` where there is no structure."""
        if _is_traced(operator):
            return self._in_program(operator, key)
        return self.decompose(self.find(operator), operator, show)

    def _in_program(self, operator: Operator, key: Key, maps_split: bool = False) -> Spectrum:
        """The spectrum as part of a program; `maps_split`: whether a batch of maps will do, if none of them splits."""
        check_operator(operator)
        if self.blocks is not None:
            raise Declined("`blocks` needs its numbers, which are not known while JAX traces it")
        ready = operator.prepare()
        if ready.factor is None:
            raise Declined("it has no factor R with H = R^T R")
        prepared = ready.factor.prepare()
        try:
            with _followed():
                layout = self._layout(prepared)
        except Declined:
            if operator.batch is None or not maps_split:
                raise
            layout = of_maps(prepared)
        self._check(layout)
        return spectrum_of(layout, prepared, ready.symmetric, key, str(self))

    def _layout(self, prepared: LinearMap) -> Layout:
        """Where the blocks lie, as far as the program tells without its numbers."""
        try:
            layout = of_units(walk(prepared, True, 0, traced=True), prepared)
        except Declined:
            if prepared.batch is not None:
                raise
            try:
                grid = only_product(walk(prepared, False, 0, traced=True), self.max_bytes, self.max_size)
            except TooLarge:
                raise
            except Declined:
                pass
            else:
                if grid.channels > 1:
                    return of_maps(prepared, grid.entries)
            raise
        if not layout.splits:
            raise Declined("nothing in it splits")
        return layout

    def _walk(self, prepared: LinearMap) -> tuple[Found, Structure]:
        try:
            found = walk(prepared, True, self.max_bytes / 4)
            make = functools.partial(BlockDiagonal, found, prepared.in_size, prepared.batch, self.max_bytes)
            structure = make(False)
            # What iterates over the larger units takes the small ones with it; of nothing but small ones, all is cheap.
            return found, make(True) if self.blocks is not None and structure.blocks else structure
        except Declined:
            if prepared.batch is not None:
                raise
            try:
                found = walk(prepared, False, self.max_bytes / 4)
                eps = eps_of(prepared.dtype)
                most = math.inf if self.blocks is not None else self.max_size
                return found, KhatriRao(found, prepared.in_size, eps, self.max_bytes, most)
            except TooLarge:
                raise
            except Declined:
                pass
            raise

    def _check(self, structure: Structure | Layout) -> None:
        operations = sum(structure.operations())
        for name, needed in (
            ("max_size", structure.order),
            ("max_bytes", structure.bytes()),
            ("max_operations", operations),
        ):
            if needed > getattr(self, name):
                limit = f"`{name}` = {getattr(self, name):.3g}"
                raise Declined(f"it has one ({structure}), but {limit} is less than the {needed:.3g} needed")

    def run(
        self,
        operator: Operator,
        key: Key,
        vectors: int,
        start: Array | None = None,
        show: Progress = silent,
    ) -> Spectrum:
        """The whole spectrum, or its ends; `start` is not used, and `key` by `blocks` and in programs alone."""
        del start
        if vectors:
            raise ValueError("`Structured` returns no eigenvectors: use `GolubKahan(...)`, or ask for `vectors=0`.")
        if _is_traced(operator):
            try:
                return self._in_program(operator, key, maps_split=True)
            except Declined as reason:
                raise _refusal(operator, reason) from None
        structure, factor = self.require(operator), operator.factor
        if self.blocks is None or factor is None or not structure.blocks:
            return self.decompose(structure, operator, show)
        maps = structure.maps(factor.prepare())
        blocks = self.blocks

        def together(found: Spectrum) -> Spectrum:
            return ends(found, structure.blocks, structure.size, operator.batch, blocks, str(self))

        try:
            return together(blocks.run(maps, key, 0, show=show))
        except SpectrumInterrupt as interrupt:
            raise SpectrumInterrupt(together(interrupt.spectrum)) from None

    def require(self, operator: Operator) -> Structure:
        """The structure; ValueError where there is none."""
        try:
            return self.find(operator)
        except Declined as reason:
            raise _refusal(operator, reason) from None

    def decompose(self, structure: Structure, operator: Operator, show: Progress = silent) -> Spectrum:
        """The spectrum of a structure that was found in the operator."""
        parts, total = [], structure.pieces
        for part in structure.parts(jnp.dtype(operator.dtype) == jnp.float64):
            parts.append(part)
            show(len(parts), total, operator.label)
        return whole(parts, structure.size, operator.dtype, operator.batch, str(self))


def _is_traced(operator: Operator) -> bool:
    """Whether its numbers, or those that come of them, are not known now."""
    return not is_concrete(operator, jnp.zeros(()))


def _refusal(operator: Operator, reason: Declined) -> ValueError:
    return ValueError(f"`Structured` declines {operator.label or 'the operator'}: {reason}. Use another method.")


@contextlib.contextmanager
def _followed() -> Iterator[None]:
    """Programs of others hold what no rule foresaw; nothing depends on this route, so whatever fails declines it."""
    try:
        yield
    except Declined:
        raise
    except Exception as error:
        raise Declined(f"its program could not be followed ({type(error).__name__}: {error!s:.80})") from error


def _verify(found: Found, prepared: LinearMap) -> None:
    """Compare R v of one random vector with the operator's own.

    The walk either follows a program exactly or declines, so a difference above rounding means that it was mistaken.

    Raises:
        Unconfirmed: they differ.
    """
    shape = (prepared.in_size,) if prepared.batch is None else (prepared.batch, prepared.in_size)
    v = np.random.default_rng(0).standard_normal(shape)
    product = np.asarray(prepared.mv(to_device(v, prepared.dtype)), np.float64).ravel()
    error = np.linalg.norm(found.apply(v.ravel()) - product)
    if not error <= eps_of(prepared.dtype) ** 0.5 * np.linalg.norm(product):
        raise Unconfirmed("a random vector did not confirm what was found (or the product is not finite)")
