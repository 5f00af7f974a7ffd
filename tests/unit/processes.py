# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that run beside a test: in a thread, or in a process of their own."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from typing import TYPE_CHECKING

from usb_proxy import start
from usb_proxy.locks import Lock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from usb_proxy.host import Host

PATIENCE = 10.0
"""Seconds that anything may take on a slow machine."""

CHILD_FAILED = 70


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Return once a condition holds; fail when it does not in time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.002)


class Running:
    """A program in a thread of this process."""

    def __init__(self, host: Host, *arguments: str) -> None:
        self._code: int | None = None
        self._thread = threading.Thread(target=self._run, args=(host, arguments), daemon=True)
        self._thread.start()

    def _run(self, host: Host, arguments: Sequence[str]) -> None:
        self._code = start.run(start.load(arguments[0]), arguments, host)

    def code(self) -> int:
        """Its exit code, once it has ended."""
        self._thread.join(PATIENCE)
        assert self._code is not None, "the program did not end"
        return self._code

    def is_running(self) -> bool:
        return self._thread.is_alive()


def run(host: Host, *arguments: str) -> int:
    """Run a program to its end: its exit code."""
    return Running(host, *arguments).code()


class Child:
    """A function in a process of its own, killed at the end of the context."""

    def __init__(self, body: Callable[[], int | None]) -> None:
        self.pid = os.fork()
        self._status: int | None = None
        if self.pid == 0:
            code = CHILD_FAILED
            try:
                code = body() or 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status is not None

    def code(self) -> int:
        """Its exit code, -N for signal N, once it has ended."""
        wait_for(self.ended, "a child's end")
        assert self._status is not None
        return self._status

    def kill(self) -> None:
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.code()


def program(host: Host, *arguments: str) -> Child:
    """A program in a process of its own, as it is started for real."""

    def body() -> int:
        host.guard_signals()
        return start.run(start.load(arguments[0]), arguments, host)

    return Child(body)


def hold(host: Host, name: str, note: str = "", release: bool = False) -> Child:
    """A process that holds a lock, with a note, until SIGTERM; it releases it then, or dies."""
    ready, tell = os.pipe()

    def body() -> None:
        if release:
            host.guard_signals()
        lock = Lock(host, name)
        assert lock.acquire(0)
        with lock:
            if note:
                lock.note(note)
            os.write(tell, b"\0")
            try:
                host.wait({}, None)
            except Exception:
                if not release:
                    raise

    child = Child(body)
    os.close(tell)
    try:
        assert os.read(ready, 1), "the lock was not to be had"
    finally:
        os.close(ready)
    return child


def leave(host: Host, name: str, note: str) -> None:
    """Leave a lock behind as a killed process does."""
    with hold(host, name, note):
        pass
