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
        OSError: It cannot be written, or its folder cannot be made; the message tells the path and the remedy.
    """
    if os.path.isdir(path):  # unlike `Path.is_dir`, no error for names that cannot be
        raise IsADirectoryError(f"`{path}` is a folder: pass the path of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"`{path.parent}` cannot be a folder ({_reason(error)}): pass a path that can be written to."
        ) from error
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise OSError(f"`{path}` cannot be written ({_reason(error)}): pass another path, or make room.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The whole text under that name, or what was there before; raises as `whole`."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def folder_of_ones_own(folder: Path) -> Iterator[None]:
    """A folder that can be written to, and that no other process works on until this is left, or killed.

    Raises:
        ValueError: Another process works on it.
        OSError: It cannot be made or written to; the message tells the path and the remedy.
    """
    check_folder(folder)
    lock = folder / ".lock"
    try:
        lock.touch()
    except OSError as error:
        raise OSError(_unwritable(folder, error)) from error
    with open(lock, "w", encoding="utf-8") as file:
        try:
            _lock(file)
        except BlockingIOError:
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
        try:
            probe.write_bytes(b" ")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(_unwritable(folder, error)) from error


def _unwritable(folder: Path, error: OSError) -> str:
    return f"`{folder}` cannot be written to ({_reason(error)}): pass another folder as `out`."


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _lock(file: IO[str]) -> None:
    """Until the file is closed, also by the end of the process; where the system has no such lock, none."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network folders have none
        return
