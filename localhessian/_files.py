"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

fcntl: Any
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when all is written, and is removed when it is not.

    Several writers of one path do not meet: the last one to end stays.

    Yields:
        Where to write.

    Raises:
        IsADirectoryError: It is a folder.
        OSError: Its folder cannot be made; the message tells the path and the remedy.
    """
    if path.is_dir():
        raise IsADirectoryError(f"`{path}` is a folder: pass the path of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"`{path.parent}` cannot be a folder ({error.strerror}): pass a path that can be written to."
        ) from error
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_of_ones_own(folder: Path) -> Iterator[None]:
    """A folder that can be written to, and that no other process works on until this is left, or killed.

    Raises:
        ValueError: Another process works on it.
        OSError: It cannot be made or written to; the message tells the path and the remedy.
    """
    check_folder(folder)
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            _lock(file)
        except OSError:
            raise ValueError(
                f"another process works on `{folder}`: wait for it, or choose another folder for `out`."
            ) from None
        yield


def check_folder(folder: Path) -> None:
    """Make a folder, and see that it can be written to, before long work begins.

    Raises:
        OSError: It cannot; the message tells the path and the remedy.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}-{secrets.token_hex(4)}.part"
        probe.write_bytes(b" ")
        probe.unlink()
    except OSError as error:
        raise OSError(f"`{folder}` cannot be written to ({error.strerror}): pass another folder as `out`.") from error


def _lock(file: IO[str]) -> None:
    """Until the file is closed, also by the end of the process; where the system has no such lock, none."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
