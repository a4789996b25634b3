"""Write, lock and remove files in folders that others may have made: whole or not at all, and through no link."""

import errno
import fcntl
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from expo.config.errors import UserError

LOCK = ".lock"  # of a run directory, in it: however its path is spelled, it is one lock
NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)  # what opening a link, a folder or a fifo ends in
ASIDE = ".expo-removed"
CHECKOUT = "not installed"  # the version of what runs from a folder
# No longer done, then no run, then nothing to go on from.
ORDER = {"summary.json": 0, "config.yaml": 1, "checkpoints": 2}


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a temporary path, and move the file written there into its place: no reader sees half of it. A link in its
    place is replaced, and not followed. Raises UserError where something else is there, such as a folder or
    /dev/null."""
    if (path.exists() and not path.is_file()) or path.absolute().parent == Path("/dev"):
        raise UserError(f"{path}: is there, and no file; remove it, or give another place")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(partial)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # of a full disk


def remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link and nothing behind it. Raises OSError where something stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear(directory: Path) -> None:
    """Remove all that a run directory, or a link to one, holds but its lock: set aside first, so that a kill leaves no
    half of a run. Raises UserError for a link to anything but a run, and where something stays."""
    if directory.is_symlink() and not (directory / "config.yaml").is_file() and any(directory.iterdir()):
        raise UserError(f"{directory}: a link to what is no run directory; nothing there is removed: remove the link")
    aside = directory / ASIDE
    try:
        remove(aside)
        aside.mkdir()
        contents = [path for path in directory.iterdir() if path.name not in (ASIDE, LOCK)]
        for path in sorted(contents, key=lambda p: ORDER.get(p.name, len(ORDER))):
            path.rename(aside / path.name)
        remove(aside)
    except OSError as error:
        raise UserError(f"{directory}: cannot be removed ({error.strerror or error}); remove it by hand") from error


def discard(directory: Path) -> None:
    """Remove a run directory, and where it is a link, that and the directory behind it. Raises UserError as `clear`."""
    clear(directory)
    try:
        remove(directory.resolve())
        if directory.is_symlink():
            directory.unlink()
    except OSError as error:
        raise UserError(f"{directory}: cannot be removed ({error.strerror or error}); remove it by hand") from error


def sweep(directory: Path) -> None:
    """Remove the partial files of killed writers from a run directory, which the caller has locked."""
    for left in (directory / ASIDE, *directory.glob(".*.tmp"), *directory.glob("*/.*.tmp")):
        remove(left)


def check_links(directory: Path) -> None:
    """Raise UserError where a link in a run directory leads out of it: what a run writes would be written elsewhere."""
    inside = os.path.realpath(directory)
    for folder, folders, files in os.walk(directory):
        for path in (os.path.join(folder, name) for name in (*folders, *files)):
            real = os.path.realpath(path)
            if os.path.islink(path) and os.path.commonpath([real, inside]) != inside:
                raise UserError(
                    f"{path}: a link to {real}; a run writes through no link inside its directory: move what is there "
                    "here, or link the whole directory"
                )
        if folder == str(directory) and "wandb" in folders:  # W&B has links to its own log, and writes new files alone
            folders.remove("wandb")


@contextmanager
def locked(path: Path, waiting: str | None = None) -> Iterator[IO[str] | None]:
    """Lock a file within the context; a process that inherits the open file keeps the lock. Args: waiting, what to say
    where another has it, and wait; None: give None at once. Raises UserError for a lock file that is none."""
    while True:
        if waiting is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    yield None
                    return
                print(waiting, end="\n" if waiting else "", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, path):  # else it was removed meanwhile, with its folder
                yield file
                return


@contextmanager
def unused(directory: Path) -> Iterator[bool]:
    """Lock an existing run against other processes; yields False where one works on it."""
    if not os.access(directory, os.W_OK):  # ours is not to keep anyone from it
        yield not is_held(directory / LOCK)
        return
    with locked(directory / LOCK) as lock:
        yield lock is not None


def _opened(path: Path) -> IO[str]:
    try:
        return open(path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666))
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        raise UserError(f"{path}: no plain file, as a lock is; remove it") from error


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """Return whether anyone, this process included, holds an exclusive lock on a file; False where there is none."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # there is none
        return False
    with os.fdopen(number) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a fifo, a folder
            return False
    return False


class Temporary(tempfile.TemporaryDirectory[str]):
    """Temporary folder, locked while it is in use. Making one first removes those that killed processes have left."""

    def __init__(self, prefix: str, parent: str | None = None):
        for left in Path(parent or tempfile.gettempdir()).glob(f"{prefix}*"):
            if (left / LOCK).is_file() and left.stat().st_uid == os.getuid() and not is_held(left / LOCK):
                with suppress(OSError):  # another process was quicker
                    remove(left)
        super().__init__(prefix=prefix, dir=parent)
        new = Path(self.name, "new")
        self.lock = new.open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        new.rename(new.with_name(LOCK))  # there, and held, at once


def version_of(package: str) -> str | None:
    """Return the installed version of a package; None where it is not installed, as expo itself in a bare checkout."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
