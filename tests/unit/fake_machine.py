# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine below a temporary folder: its clock, its commands and its QubesDB."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from usb_proxy.host import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import NoReturn

QUBESDB = {
    "qubesdb-write": """while [ $# -gt 1 ]; do
case $1 in */*/*) mkdir -p "$DB${1%/*}"; printf %s "$2" > "$DB$1";; esac; shift 2; done""",
    "qubesdb-rm": 'code=0; for key; do rm "$DB$key" || code=1; done; exit $code',
    "qubesdb-read": 'cat "$DB$1"',
}


def show(file: Path, text: str) -> None:
    """Change what a file shows; nobody ever sees a half of it."""
    fresh = file.with_name(f".{file.name}")
    fresh.write_text(text)
    fresh.rename(file)


def fail(number: int) -> NoReturn:
    """Answer as the kernel does."""
    raise OSError(number, os.strerror(number))


class FakeMachine(Host):
    """A machine without drivers; `haste` makes its clock run that many times faster in a wait.

    Only there: what a program does takes as long as it takes, also where the processor is busy.
    A write to a kernel file `NAME` is answered by the method `_write_NAME` of a subclass.
    """

    def __init__(self, tree: Path) -> None:
        files = (os.open(tree / name, os.O_CREAT | os.O_RDWR) for name in ("stderr", "stdout"))
        super().__init__(str(tree), {}, -1, *files)
        self.tree = tree
        self.haste = 1.0
        self.privileged = True
        self.refuse: dict[str, int] = {}
        """The errno with which a write to a file of this name fails."""
        self.before: dict[str, Callable[[], object]] = {}
        """What happens once, just before a write to a file of this name."""
        self.written: list[str] = []
        self._skipped = 0.0
        self._waiting: set[int] = set()
        self._waiting_since = 0.0
        self._news = os.pipe()
        self._event_lock = threading.RLock()
        self._sessions: dict[str, tuple[socket.socket, threading.Thread]] = {}
        for folder in ("run/qubes", "run/qubes-service", "run/udev/data", "usr/bin", "db"):
            (tree / folder).mkdir(parents=True)

    def close(self) -> None:
        """End every session, and what it holds open."""
        for key in list(self._sessions):
            self._end(key)
        for fd in (self.errors, self.output, *self._news):
            os.close(fd)

    def announce(self) -> None:
        """Wake who waits for uevents, like one does; what it says cannot be faked."""
        os.write(self._news[1], b"x")

    # What is asked of the machine.

    def is_root(self) -> bool:
        return self.privileged

    def now(self) -> float:
        now = time.monotonic()
        # A thread that begins to wait must not find its deadline passed before it has looked.
        others = self._waiting - {threading.get_ident()}
        waited = now - self._waiting_since if others else 0.0
        return now + self._skipped + waited * (self.haste - 1)

    @contextmanager
    def _hasten(self) -> Iterator[None]:
        """Until the last thread that waits has done, time flies."""
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting.add(threading.get_ident())
        try:
            yield
        finally:
            self._waiting.remove(threading.get_ident())
            if not self._waiting:
                self._skipped += (time.monotonic() - self._waiting_since) * (self.haste - 1)

    def wait(
        self, events: Mapping[int, int], deadline: float | None, stoppable: bool = True
    ) -> dict[int, int]:
        if deadline is not None:
            now = self.now()
            deadline = now + (deadline - now) / self.haste
        uevents = [fd for fd in events if is_netlink(fd)]
        news = {self._news[0]: select.POLLIN} if uevents else {}
        with self._hasten():
            ready = super().wait({**events, **news}, deadline, stoppable)
        if ready.pop(self._news[0], 0):
            os.read(self._news[0], 4096)
            ready[uevents[0]] = select.POLLIN
        return ready

    def write(self, path: str, text: str, directory: int | None = None) -> None:
        if directory is None:
            file = Path(self.root + path)
        else:
            file = Path(os.readlink(f"/proc/self/fd/{directory}")) / path
        self.before.pop(file.name, lambda: None)()
        os.stat(file if directory is None else path, dir_fd=directory)
        if file.name in self.refuse:
            fail(self.refuse[file.name])
        self.written.append(f"{file.name} {text}")
        getattr(self, f"_write_{file.name}")(file.parent.resolve() / file.name, text)

    # Sessions of either driver.

    def _begin(self, key: str, fd: int, ended: Callable[[], None]) -> None:
        ours = duplicate(fd)
        if ours is None or ours.type != socket.SOCK_STREAM:
            fail(errno.EINVAL)

        def watch() -> None:
            try:
                while ours.recv(65536):
                    pass
            except OSError:
                pass
            with self._event_lock:
                ended()
                shut_down(ours)
                ours.close()

        thread = threading.Thread(target=watch, daemon=True)
        self._sessions[key] = ours, thread
        thread.start()

    def _end(self, key: str) -> None:
        if key in self._sessions:
            ours, thread = self._sessions.pop(key)
            shut_down(ours)
            thread.join()

    # Commands, QubesDB and what they were told.

    def command(self, name: str, body: str = "exit 0") -> Path:
        """Install a shell script that notes how it was called, as a command."""
        path = self.tree / "usr/bin" / name
        note = """printf '%s\\t' "${0##*/}" "$@" >> "$TREE/calls"; echo >> "$TREE/calls\""""
        path.write_text(f"#!/bin/sh\nTREE='{self.tree}' DB='{self.tree}/db'\n{note}\n{body}\n")
        path.chmod(0o755)
        return path

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call of a command so far."""
        log = self.tree / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [f[1:-1] for line in lines if (f := line.split("\t"))[0] == name]

    def add_qubesdb(self) -> None:
        """Install the commands of QubesDB."""
        for name, body in QUBESDB.items():
            self.command(name, body)

    def published(self, key: str) -> dict[str, str]:
        """What QubesDB has of a device."""
        folder = self.tree / "db/qubes-usb-devices" / key
        return {path.name: path.read_text() for path in folder.glob("*")}

    def said(self) -> str:
        """What was written to standard error so far."""
        return (self.tree / "stderr").read_text()

    def shown(self) -> str:
        """What was written to standard output since this was asked last."""
        file = self.tree / "stdout"
        text = file.read_text()
        file.write_text("")
        os.lseek(self.output, 0, os.SEEK_SET)
        return text

    def locks(self) -> list[str]:
        """The names of the lock files that are there."""
        return self.listing("/run/qubes-usb-proxy")


def open_files() -> list[str]:
    """The paths that this process has open."""
    paths = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            paths.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return paths


def duplicate(fd: int) -> socket.socket | None:
    """A duplicate of a socket; None for what is none."""
    try:
        copy = os.dup(fd)
    except OSError:
        return None
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None


def is_netlink(fd: int) -> bool:
    """Whether an FD is the kernel's socket for uevents."""
    copy = duplicate(fd)
    if copy is None:
        return False
    with copy:
        return copy.family == socket.AF_NETLINK


def shut_down(ours: socket.socket) -> None:
    """Shut a connection down, if it is still one."""
    try:
        ours.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
