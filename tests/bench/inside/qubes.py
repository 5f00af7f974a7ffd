# SPDX-License-Identifier: GPL-2.0-or-later
"""Qubes in one guest: mount namespaces with an agent each, and dom0's router between them."""

import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Protocol

from tests.lab.errors import LabError
from tests.lab.guest import wire
from tests.lab.router import Completed, Router

BACKEND, FRONTEND, OTHER = "sys-usb", "work", "personal"
LAB = "/usr/lib/lab"
AGENT = (
    f"import sys; sys.path.append('{LAB}'); from guest.agent import main; main(int(sys.argv[1]))"
)
DATABASE = "run/lab-qubesdb"
CHANGED = "/qubes-usb-devices"
CALL_SECONDS = 200

# The /run of a qube; udev is shared with the machine, and so are the devices.
OWN_RUN = """
mount -n -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/udev /mnt/lock
mount -n --bind /run/udev /mnt/udev
install -d -o root -g qubes -m 2770 /mnt/qubes /mnt/lab-qubesdb /mnt/lab-qubesdb.new
mount -n --move /mnt /run
"""


class Running(Protocol):
    """A service that is under way."""

    def wait(self, timeout: float) -> Completed:
        """How it ended; LabError if it takes longer than `timeout` seconds."""
        ...


def layers(tree: Path) -> str:
    """Shell commands that lay the files of a tree over the root folder."""
    lines = []
    done: list[Path] = []
    for folder, _, files in sorted(os.walk(tree)):
        place = Path("/") / Path(folder).relative_to(tree)
        if not files or any(place.is_relative_to(each) for each in done):
            continue
        done.append(place)
        place.mkdir(parents=True, exist_ok=True)
        if any(place.iterdir()):
            lines.append(f"mount -n -t overlay overlay -o lowerdir={folder}:{place} {place}")
        else:
            lines.append(f"mount -n --bind {folder} {place}")
    return "\n".join(lines)


def enter(setup: str, *command: str, keep: tuple[int, ...] = ()) -> "subprocess.Popen[bytes]":
    """Start a command in a mount namespace of its own, which shell commands set up before."""
    inside = ["/bin/sh", "-c", f'set -eu\n{setup}\nexec "$@"', "sh", *command]
    return subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", *inside], pass_fds=keep
    )


class Qubes:
    """A backend and two frontends, with the files of `tree`; `tracer` is a command before each."""

    stand_ins: tuple[bytes, ...] = (LAB.encode(), b"qrexec-client-vm", b"strace")
    """Words of the command lines that are not the program's."""

    def __init__(self, tree: Path, tracer: tuple[str, ...] = ()) -> None:
        self._published = threading.Condition()
        self.unpublished_at = 0.0
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._begin(tree, tracer)

    def _begin(self, tree: Path, tracer: tuple[str, ...]) -> None:
        self._router = Router(lambda *_: "user", self._changed)
        ready = []
        for name in (BACKEND, FRONTEND, OTHER):
            ours, theirs = socket.socketpair()
            agent = ["/usr/bin/python3", "-IS", "-c", AGENT, str(theirs.fileno())]
            before = (part.format(name=name) for part in tracer)
            setup = OWN_RUN + layers(tree)
            self._agents[name] = enter(setup, *before, *agent, keep=(theirs.fileno(),))
            theirs.close()
            ready.append(self._router.add(name, ours))
        for event in ready:
            if not event.wait(30):
                raise LabError("an agent does not answer")

    def close(self) -> None:
        """End the agents; nothing must be attached any more."""
        for agent in self._agents.values():
            agent.kill()
            agent.wait()
        self._router.close()

    def names(self) -> list[str]:
        """The names of the qubes."""
        return list(self._agents)

    def pid(self, name: str) -> int:
        """A process of a qube, for its name space."""
        return self._agents[name].pid

    def root(self, name: str) -> Path:
        """A qube's root folder, seen from outside."""
        return Path(f"/proc/{self.pid(name)}/root")

    def start(self, name: str, service: str, request: str) -> "Running":
        """Start a service as dom0 does."""
        return self._router.call(name, wire.SERVICE, "root", service, f"{request}\n".encode())

    def end(self, call: "Running", wanted: str) -> None:
        """Wait for a service's end; LabError unless it succeeded."""
        done = call.wait(CALL_SECONDS)
        if done.code:
            raise LabError(f"{wanted}: code {done.code}: {done.stderr.decode()}")

    def call(self, name: str, service: str, request: str) -> float:
        """Call a service: the milliseconds that it took."""
        start = time.monotonic()
        self.end(self.start(name, service, request), f"{service} {request}")
        return 1e3 * (time.monotonic() - start)

    def attach(self, device: str, name: str = FRONTEND) -> float:
        """Attach a device: the milliseconds that it took."""
        return self.call(name, "qubes.USBAttach", f"{BACKEND} {device}")

    def detach(self, device: str, name: str = FRONTEND) -> float:
        """Detach it from the frontend's side: the milliseconds until the service returned."""
        return self.call(name, "qubes.USBDetach", f"{BACKEND} {device}")

    def take_back(self, device: str) -> float:
        """Detach it from the backend's side: the milliseconds until the service returned."""
        return self.call(BACKEND, "qubes.USBDetach", device)

    def is_published(self) -> bool:
        """Whether dom0 is told that any device is connected."""
        return any(
            name.endswith("%connected-to") for name in os.listdir(self.root(BACKEND) / DATABASE)
        )

    def await_unpublished(self, since: float) -> float:
        """The milliseconds from a time to when dom0 was told that nothing is connected."""
        with self._published:
            if not self._published.wait_for(lambda: self.unpublished_at > since, 60):
                raise LabError("it is still published")
            return 1e3 * (self.unpublished_at - since)

    def processes(self) -> list[int]:
        """The processes of the program in all qubes, without those of the stand-ins."""
        spaces = {os.readlink(f"/proc/{agent.pid}/ns/mnt") for agent in self._agents.values()}
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{entry}/ns/mnt") in spaces:
                    line = Path(f"/proc/{entry}/cmdline").read_bytes()
                    if line and not any(word in line for word in self.stand_ins):
                        found.append(int(entry))
            except OSError:
                continue
        return found

    def records(self) -> list[str]:
        """The records of all frontends."""
        return [
            each
            for name in (FRONTEND, OTHER)
            for each in os.listdir(self.root(name) / "run/qubes")
            if each.startswith("usb-import-")
        ]

    def _changed(self, name: str, key: str) -> None:
        if name == BACKEND and key == CHANGED and not self.is_published():
            with self._published:
                self.unpublished_at = time.monotonic()
                self._published.notify_all()
