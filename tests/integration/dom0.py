# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0 for the lab: the extension in the model of qubesd, with guests as its qubes."""

from __future__ import annotations

import asyncio
import math
import subprocess
import time
from pathlib import Path

from tests.dom0 import conftest  # noqa: F401 (which makes `qubes` importable)
from tests.dom0.world import ROOT, Qube, World
from tests.lab.guests import Guest
from tests.lab.lab import Lab
from usb_proxy.dom0 import pace

SECONDS = 60

pace.REST = 0
"""A guest answers thousands of times slower than QubesDB's daemon, and nothing would be seen for a
minute after that. tests/dom0/test_hostile.py proves the pace."""


class PolicyLab(Lab):
    """The lab, with the policy that the extension writes, and rules that come before it."""

    rules = Path()
    before: tuple[tuple[str, str, str, bool], ...] = ()
    """Service, source, target, and whether that is allowed."""

    def _user(self, source: str, target: str, full_name: str) -> str | None:
        service, _, argument = full_name.partition("+")
        for *call, allow in self.before:
            if call == [service, source, target]:
                return "root" if allow else None
        wanted = f"{service} +{argument} {source} {target} allow user=root"
        try:
            return "root" if wanted in self.rules.read_text().splitlines() else None
        except FileNotFoundError:
            return None


class GuestDatabase:
    """A guest's QubesDB, as qubesd reads it; all of it is asked for at once, as that takes long."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._keys: dict[str, bytes] = {}
        self.stale = 0.0

    def _all(self) -> dict[str, bytes]:
        if time.monotonic() > self.stale:
            # What changes during the answer is not in it: the watch sets this to 0 again then.
            self.stale = math.inf
            try:
                self._keys = self._guest.database()
            except BaseException:
                self.stale = 0.0
                raise
            if self.stale:
                self.stale = time.monotonic() + 0.2
        return self._keys

    def read(self, path: str) -> bytes | None:
        return self._all().get(path)

    def list(self, prefix: str) -> list[str]:
        return [path for path in self._all() if path.startswith(prefix)]

    def clear(self) -> None:
        """A qube that ends takes it along."""


class LabWorld(World):
    """qubesd's qubes, of which some are guests."""

    def __init__(self, folder: Path, lab: Lab, other: Guest) -> None:
        super().__init__(folder)
        self.lab = lab
        self.guests = {"sys-usb": lab.backend, "work": lab.frontend, other.name: other}
        self.usb.untrusted_qdb = GuestDatabase(lab.backend)

    def watch(self) -> None:
        """Hear of changes in sys-usb, from now on and in this loop."""
        loop = asyncio.get_running_loop()

        def changed(key: str) -> None:
            self.usb.untrusted_qdb.stale = 0.0
            if key == ROOT and not loop.is_closed():
                loop.call_soon_threadsafe(self.change)

        self.lab.watch(self.lab.backend, changed)
        self.change()

    async def serve(self, vm: Qube, service: str, words: list[str], stubdom: bool) -> None:
        lines = [" ".join(words), *filter(None, self.second_lines[-1:])]
        request = "".join(f"{line}\n" for line in lines).encode()
        guest = self.guests[f"{vm.name}-dm" if stubdom else vm.name]
        done = await asyncio.to_thread(self.lab.call, guest, service, request, SECONDS)
        if done.code:
            raise subprocess.CalledProcessError(done.code, service, done.stdout, done.stderr)
