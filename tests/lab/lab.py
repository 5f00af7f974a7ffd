# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab as tests and the demonstration use it: two guests, and dom0's view of them."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import LabError
from .guests import BACKEND, FRONTEND, Guest
from .image import Image, Progress, image
from .router import Call, Completed, Router

START_SECONDS = 120


def quiet(_line: str) -> None:
    """A progress sink that drops what it gets."""


class Lab:
    """Two guests, `backend` (sys-usb) and `frontend` (work); use it in a `with`.

    `debs` is a folder with our package, or None for guests without it; `suite` is the Debian
    release, and `frontend_suite` that of all but the backend where it is another; `progress` gets a
    line for each long step; `smp` is the processors of each guest.
    """

    def __init__(
        self,
        debs: Path | None = Path("dist"),
        suite: str = "bookworm",
        progress: Progress = quiet,
        smp: int = 1,
        *,
        frontend_suite: str | None = None,
    ) -> None:
        self._debs, self._suite, self._progress, self._smp = debs, suite, progress, smp
        self._frontend_suite = frontend_suite or suite
        self._rules: list[tuple[str, str, str, str, str]] = []
        self._watches: list[tuple[str, Callable[[str], None]]] = []
        self._cleanup = contextlib.ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as cleanup:
            boot = self._image(self._suite, cleanup)
            self._boot = self._image(self._frontend_suite, cleanup)
            folder = Path(tempfile.mkdtemp(prefix="lab-"))
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            self.folder = folder
            self._router = Router(self._user, self._changed)
            cleanup.callback(self._router.close)
            self.backend = Guest(BACKEND, boot, folder, self._router, self._smp)
            self.frontend = Guest(FRONTEND, self._boot, folder, self._router, self._smp)
            start = time.monotonic()
            for guest in (self.backend, self.frontend):
                cleanup.callback(guest.kill)
                guest.start()
            for guest in (self.backend, self.frontend):
                guest.wait_ready(START_SECONDS)
            self._progress(f"lab: both guests are up ({time.monotonic() - start:.0f} s)")
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def _image(self, suite: str, cleanup: contextlib.ExitStack) -> Image:
        """The image for a suite, held open: others may push it out of the cache meanwhile."""
        boot = image(self._debs, suite, self._progress)
        disk = os.open(boot.disk, os.O_RDONLY)
        cleanup.callback(os.close, disk)
        return dataclasses.replace(boot, disk=Path(f"/proc/{os.getpid()}/fd/{disk}"))

    def start_frontend(self, name: str) -> Guest:
        """Start one more qube without USB controllers."""
        guest = Guest(name, self._boot, self.folder, self._router, self._smp)
        self._cleanup.callback(guest.kill)
        guest.start()
        guest.wait_ready(START_SECONDS)
        return guest

    def call(
        self,
        guest: Guest,
        service: str,
        stdin: bytes = b"",
        timeout: float = 60,
        user: str = "root",
    ) -> Completed:
        """Call a service from dom0. A non-zero code is a result, not an error."""
        try:
            return self.start_call(guest, service, stdin, user).wait(timeout)
        except LabError as error:
            raise guest.failure(f"{service}: {error}") from error

    def start_call(
        self, guest: Guest, service: str, stdin: bytes = b"", user: str = "root"
    ) -> Call:
        """Like `call`, but returns at once; see `Call.wait` and `Call.cancel`."""
        return guest.start_service(service, stdin, user)

    def allow(
        self, service: str, argument: str, source: Guest, target: Guest, user: str = "user"
    ) -> None:
        """Add a rule to the policy; `*` is any argument."""
        with self._lock:
            self._rules.append((service, argument, source.name, target.name, user))

    def revoke(self, service: str, argument: str, source: Guest, target: Guest) -> None:
        """Take rules out again. Connections that they allowed live on."""
        rule = (service, argument, source.name, target.name)
        with self._lock:
            self._rules = [each for each in self._rules if each[:4] != rule]

    @contextlib.contextmanager
    def allowed(
        self, service: str, argument: str, source: Guest, target: Guest, user: str = "user"
    ) -> Iterator[None]:
        """A rule for the time of a `with`."""
        self.allow(service, argument, source, target, user)
        try:
            yield
        finally:
            self.revoke(service, argument, source, target)

    def lose_connections(self) -> None:
        """Close every call and every connection between guests, as if dom0 had been restarted."""
        self._router.lose_connections()

    def qubesdb_list(self, guest: Guest, prefix: str = "/") -> dict[str, bytes]:
        """The keys that begin with `prefix`, and their values."""
        return {key: value for key, value in guest.database().items() if key.startswith(prefix)}

    def watch(self, guest: Guest, callback: Callable[[str], None]) -> None:
        """Call `callback(key)` for each change, in the router's thread: do not block in it.

        `queue.Queue().put` is a good callback.
        """
        with self._lock:
            self._watches.append((guest.name, callback))

    def _user(self, source: str, target: str, full_name: str) -> str | None:
        service, _, argument = full_name.partition("+")
        with self._lock:
            for name, allowed, *ends, user in self._rules:
                if name == service and allowed in ("*", argument) and ends == [source, target]:
                    return user
        return None

    def _changed(self, guest: str, key: str) -> None:
        with self._lock:
            callbacks = [callback for name, callback in self._watches if name == guest]
        for callback in callbacks:
            callback(key)
