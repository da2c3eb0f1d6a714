"""One writer at a time for an output directory or file.

The owner holds an OS lock (flock) on a small JSON file, which the kernel frees at once however the process ends. Some
shared file systems do not pass this lock on to other hosts, and some have none. So the file also holds a counter, which
the owner increases every ``BEAT_S`` seconds: a process that finds the file of an owner whose lock says nothing watches
for ``WATCH_S`` seconds whether the file changes. Clocks are not compared. An owner that finds the file replaced stops
writing.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from saga_dist.errors import OutputError
from saga_dist.utils.output_errors import output_errors, refuse_package_cache
from saga_dist.utils.owner_record import CONTENT_BYTES, Owner

log = logging.getLogger(__name__)

OWNER_NAME = ".owner.json"
"""Name of the owner's file in a directory; that of a file ``NAME`` is ``.NAME.owner.json`` beside it."""
BEAT_S = 5.0
"""Seconds between two increases of the counter."""
WATCH_S = 20.0
"""Seconds without a change after which an owner on another host is taken to be gone."""
_POLL_S = 0.5
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Error numbers of flock on a file system without locks."""


class _Claim:
    """A claim of this process: the locked file and the thread of its heartbeat.

    Args:
        target: directory or file that is owned.
        file: the owner's file.
        option: option of the command line that named the target, for error messages.

    Raises:
        OutputError: another process is the owner.
        OSError: the file cannot be written.
    """

    def __init__(self, target: Path, file: Path, option: str) -> None:
        self.target, self._file, self._option = target, file, option
        self._owner, self._beats, self._lost = Owner.this_process(), 0, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_released, name="owner heartbeat", daemon=True)
        self._descriptor = self._open_locked()
        try:
            self._write_beat()
        except BaseException:
            os.close(self._descriptor)
            raise
        self._thread.start()

    def _open_locked(self) -> int:
        """Returns the descriptor of the owner's file, locked, after any earlier owner is known to be gone."""
        while True:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                has_lock = self._lock(descriptor)
                if _is_at(descriptor, self._file):  # otherwise an owner released and removed it in between
                    earlier = os.pread(descriptor, CONTENT_BYTES, 0)
                    owner = Owner.parse(earlier)
                    if earlier and not (has_lock and owner is not None and owner.machine == self._owner.machine):
                        self._watch(earlier)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, descriptor: int) -> bool:
        """Locks the file; returns False when the file system has no locks.

        Raises:
            OutputError: another process holds the lock.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(_when_written(descriptor)) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return False
        return True

    def _watch(self, earlier: bytes) -> None:
        """Waits ``WATCH_S`` seconds for a change of the owner's file.

        Raises:
            OutputError: it changed, so its owner is alive.
        """
        owner = Owner.parse(earlier)
        log.info(
            "%s: host %s wrote here last; watching its heartbeat for %.0f s",
            self.target,
            owner.host if owner else "unknown",
            WATCH_S,
        )
        deadline = time.monotonic() + WATCH_S
        while time.monotonic() < deadline:
            time.sleep(_POLL_S)
            # Opened again each time: only then does NFS ask its server.
            with suppress(FileNotFoundError):
                if (present := self._file.read_bytes()) != earlier:
                    raise self._in_use(Owner.parse(present) or owner)

    def _in_use(self, owner: Owner | None) -> OutputError:
        who = "another process"
        if owner is not None:
            who = f"host {owner.host}, pid {owner.pid}, started {owner.started} ({owner.command})"
        return OutputError(
            f"is being written by {who}",
            where=str(self.target),
            fix=f"wait until it ends or stop it, or choose another {self._option}",
        )

    def check(self) -> None:
        """Checks that the target is still that of this claim.

        Raises:
            OutputError: the directory was removed, or another process took it over while this one did not run.
        """
        if self._lost or not _is_at(self._descriptor, self._file):
            raise OutputError(
                "was removed, or another process took it over, while this process was writing to it",
                where=str(self.target),
                fix=f"see what it holds now; the same command starts from there, or choose another {self._option}",
            )

    def release(self) -> None:
        """Ends the heartbeat, removes the owner's file and frees the lock."""
        self._stop.set()
        self._thread.join()
        with suppress(OSError):
            if not self._lost and _is_at(self._descriptor, self._file):
                self._file.unlink()
        os.close(self._descriptor)

    def forget(self) -> None:
        """Closes the file in a forked process; the lock stays with the parent."""
        with suppress(OSError):
            os.close(self._descriptor)

    def _beat_until_released(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(OSError):  # a disk with trouble; what is written next reports it
                present = Owner.parse(self._file.read_bytes())
                if present is not None and present.token != self._owner.token:
                    self._lost = True
                    return
                self._write_beat()

    def _write_beat(self) -> None:
        self._beats += 1
        os.pwrite(self._descriptor, self._owner.content(self._beats), 0)
        os.fsync(self._descriptor)


_claims: dict[Path, _Claim] = {}
"""Claims of this process by the owner's file."""


def _forget_all() -> None:
    for claim in _claims.values():
        claim.forget()
    _claims.clear()


os.register_at_fork(after_in_child=_forget_all)


@contextmanager
def owned_directory(path: Path, *, option: str) -> Iterator[None]:
    """Creates a directory if it is missing, and makes this process its only writer for the block.

    A claim within a claim of the same process does nothing.

    Args:
        path: output directory.
        option: option of the command line that named it, for error messages.

    Raises:
        OutputError: another process is writing there, or the directory cannot be written, or it is in a copy of a
            working directory that Ray removes.
    """
    path = path.absolute()
    refuse_package_cache(path, option=option)
    with output_errors(path, option=option):
        path.mkdir(parents=True, exist_ok=True)
    with _claimed(path, path / OWNER_NAME, option):
        yield


@contextmanager
def owned_output(path: Path, *, option: str) -> Iterator[None]:
    """Makes this process the only writer of a file, or of a folder that is not there yet, for the block.

    The folder that holds it is created if it is missing, so that an output that cannot be written is known at once.

    Args:
        path: file or folder to write.
        option: option of the command line that named it, for error messages.

    Raises:
        OutputError: as for ``owned_directory``.
    """
    path = path.absolute()
    refuse_package_cache(path, option=option)
    with output_errors(path, option=option):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _claimed(path, path.with_name(f".{path.name}{OWNER_NAME}"), option):
        yield


def check_owner(path: Path) -> None:
    """Checks, before a file is written, that no directory of this process that holds it was taken from it.

    Args:
        path: file to write.

    Raises:
        OutputError: it was removed, or another process took it over.
    """
    path = path.absolute()
    for claim in tuple(_claims.values()):
        if claim.target == path or claim.target in path.parents:
            claim.check()


@contextmanager
def _claimed(target: Path, file: Path, option: str) -> Iterator[None]:
    if file in _claims:
        yield
        return
    with output_errors(target, option=option):
        claim = _claims[file] = _Claim(target, file, option)
    with ExitStack() as closing:
        closing.callback(claim.release)
        closing.callback(_claims.pop, file, None)
        yield


def _is_at(descriptor: int, path: Path) -> bool:
    """True when the path names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _when_written(descriptor: int) -> Owner | None:
    """Returns the owner in a file that another process has just locked and may be about to write."""
    for _ in range(10):
        owner = Owner.parse(os.pread(descriptor, CONTENT_BYTES, 0))
        if owner is not None:
            return owner
        time.sleep(0.05)
    return None
