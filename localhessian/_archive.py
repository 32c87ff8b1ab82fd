"""Archives of plain arrays (`.npz`) of strangers: read within limits, refused in one sentence."""

import contextlib
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    SyntaxError,
    NotImplementedError,
    RecursionError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    RuntimeError,  # zipfile's, of members that claim to be encrypted
    tokenize.TokenError,
    lzma.LZMAError,
    OSError,  # of folders, and of positions that do not exist
)
"""What readers say of damaged files."""


class Archive:
    """Arrays by name."""

    def __init__(self, archive: zipfile.ZipFile, max_bytes: int) -> None:
        """Refuse what unpacks to more."""
        self._archive, self._sizes = archive, {info.filename: info.file_size for info in archive.infolist()}
        if sum(self._sizes.values()) > max_bytes:
            raise ValueError(f"it unpacks to more than {max_bytes} bytes")

    @property
    def names(self) -> list[str]:
        """Of its arrays."""
        return [name.removesuffix(".npy") for name in self._sizes]

    def array(self, name: str, kinds: str) -> np.ndarray:
        """One array of this kind of numbers; what its header claims must be there before memory is taken for it."""
        with self._archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, turned, dtype = header[version](file)
            count = 1
            for n in shape:
                count *= n
            if dtype.hasobject or dtype.kind not in kinds or count * dtype.itemsize > self._sizes[f"{name}.npy"]:
                raise ValueError(f"`{name}` claims {dtype} of shape {shape}")
            numbers = np.frombuffer(file.read(count * dtype.itemsize), dtype)
            file.read()  # to the end, where the checksum is
        return numbers.reshape(shape[::-1]).T if turned else numbers.reshape(shape)


@contextlib.contextmanager
def opened(path: str | Path, max_bytes: int, what: str) -> Iterator[Archive]:
    """The archive of a file, for as long as it is read; `what` is said of all that cannot be read there.

    Yields:
        Its arrays.

    Raises:
        FileNotFoundError: There is none.
        PermissionError: It may not be read.
        ValueError: It is damaged, or something else.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            yield Archive(archive, max_bytes)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file `{path}`.") from error
    except PermissionError as error:
        raise PermissionError(f"`{path}` cannot be opened ({error.strerror}).") from error
    except UNREADABLE as error:
        raise ValueError(f"`{path}` {what} ({type(error).__name__}: {str(error)[:200]})") from error
