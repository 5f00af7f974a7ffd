# SPDX-License-Identifier: GPL-2.0-or-later
"""The same qubes with the platform's own qrexec and QubesDB in the place of the stand-ins.

They speak over a vchan of sockets. Each qube knows who it is from `VCHAN_DOMAIN`, which nothing
that cleans its environment hands on: so a line of shell is before `qrexec-client-vm`.
"""

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.router import Completed

from .qubes import BACKEND, CHANGED, FRONTEND, OTHER, OWN_RUN, Qubes, enter, layers

TREE = Path("/opt/bench/platform")
DOM0 = "dom0"
DOMAINS = {DOM0: 0, BACKEND: 1, FRONTEND: 2, OTHER: 3}
UUID = "00000000-0000-4000-8000-00000000000{}"
VCHANS = Path("/opt/bench/vchans")
LOGS = Path("/var/log/qubes")
CLIENTS = Path("/opt/bench/clients")
START_SECONDS = 60
REFUSED_TARGET = "nobody"
"""A qube that policy lets nobody call."""

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "VCHAN_DOMAIN": "0"}
SHARED = f"mkdir -p /run/vchan\nmount -n --bind {VCHANS} /run/vchan\n"


class RealCall:
    """A `qrexec-client` of dom0."""

    def __init__(self, process: "subprocess.Popen[bytes]", request: bytes) -> None:
        self.process = process
        assert process.stdin is not None
        process.stdin.write(request)
        process.stdin.close()
        process.stdin = None

    def wait(self, timeout: float) -> Completed:
        """How it ended; LabError if it takes longer than `timeout` seconds."""
        try:
            out, errors = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, errors = self.process.communicate()
            raise LabError(f"no end after {timeout:.0f} s; so far: {out!r}, {errors!r}") from None
        return Completed(self.process.returncode, out, errors)


class Platform(Qubes):
    """As `Qubes`, with the real programs of the tree at `TREE`, and dom0 as one more namespace."""

    stand_ins = (b"qrexec", b"qubesdb", b"logger", b"strace")

    def _begin(self, tree: Path, tracer: tuple[str, ...]) -> None:
        for folder in (VCHANS, LOGS, CLIENTS):
            folder.mkdir(parents=True, exist_ok=True)
        for left in VCHANS.iterdir():
            left.unlink()
        self._dom0 = enter(OWN_RUN + layers(TREE) + "\n" + SHARED, "sleep", "infinity")
        self._daemons: list[subprocess.Popen[bytes]] = []
        await_true((self._dom0_root() / "run/vchan").is_mount, "dom0's namespace")
        self._policy = threading.Thread(target=self._answer, args=(self._listen(),), daemon=True)
        self._policy.start()
        for name in (BACKEND, FRONTEND, OTHER):
            self._boot(name, tree, tracer)
        watcher = self._daemon(
            ["qubesdb-watch", "-n", "1000000", "-d", BACKEND, CHANGED], subprocess.PIPE
        )
        threading.Thread(target=self._watch, args=(watcher,), daemon=True).start()

    def _boot(self, name: str, tree: Path, tracer: tuple[str, ...]) -> None:
        number = str(DOMAINS[name])
        self.command(["qubesdb-daemon", number, name])
        client = CLIENTS / name
        real = TREE / "usr/bin/qrexec-client-vm"
        client.write_text(f'#!/bin/sh\nexport VCHAN_DOMAIN={number}\nexec {real} "$@"\n')
        client.chmod(0o755)
        setup = "\n".join(
            (
                OWN_RUN,
                layers(TREE),
                layers(tree),
                SHARED,
                f"mount -n --bind {client} /usr/bin/qrexec-client-vm",
                f"export VCHAN_DOMAIN={number}",
                "qubesdb-daemon 0",
                f"exec 2>>{LOGS}/agent.{name}.log",
            )
        )
        before = (part.format(name=name) for part in tracer)
        self._agents[name] = enter(setup, *before, "/usr/lib/qubes/qrexec-agent")
        options = [f"--uuid={UUID.format(number)}", "--direct", "--policy-program=/bin/false"]
        self._daemon(["qrexec-daemon", *options, number, name, "user"])
        place = self._dom0_root() / f"run/qubes/qrexec.{name}"
        await_true(place.exists, f"qrexec of {name}")

    def close(self) -> None:
        """End all of them; nothing must be attached any more."""
        for process in (*self._agents.values(), *self._daemons, self._dom0):
            process.kill()
            process.wait()
        subprocess.run(["pkill", "-x", "qubesdb-daemon"], check=False)

    def start(self, name: str, service: str, request: str) -> RealCall:
        """Start a service as dom0 does."""
        command = ["qrexec-client", "-d", name, f"root:QUBESRPC {service} {DOM0}"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            self._in_dom0(command), stdin=pipe, stdout=pipe, stderr=pipe, env=ENVIRONMENT
        )
        return RealCall(process, f"{request}\n".encode())

    def command(self, command: list[str]) -> str:
        """Run a command in dom0: its output; LabError if it fails."""
        done = subprocess.run(
            self._in_dom0(command), capture_output=True, text=True, check=False, env=ENVIRONMENT
        )
        if done.returncode:
            raise LabError(f"{command}: code {done.returncode}: {done.stderr}")
        return done.stdout

    def is_published(self) -> bool:
        """Whether dom0 is told that any device is connected."""
        return "/connected-to" in self.command(["qubesdb-list", "-d", BACKEND, f"{CHANGED}/"])

    def _in_dom0(self, command: list[str]) -> list[str]:
        return ["nsenter", "-m", "-t", str(self._dom0.pid), *command]

    def _dom0_root(self) -> Path:
        return Path(f"/proc/{self._dom0.pid}/root")

    def _daemon(self, command: list[str], output: int | None = None) -> "subprocess.Popen[bytes]":
        with (LOGS / f"{command[0]}.log").open("ab") as log:
            daemon = subprocess.Popen(
                self._in_dom0(command), stdout=output or log, stderr=log, env=ENVIRONMENT
            )
        self._daemons.append(daemon)
        return daemon

    def _watch(self, watcher: "subprocess.Popen[bytes]") -> None:
        assert watcher.stdout is not None
        for line in watcher.stdout:
            self._changed(BACKEND, line.decode().strip())

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._dom0_root() / "run/qubes/policy.sock"))
        listener.listen()
        return listener

    def _answer(self, listener: socket.socket) -> None:
        """Be dom0's policy: all is allowed but calls to one name."""
        while True:
            link, _ = listener.accept()
            with link:
                text = b""
                while not text.endswith(b"\n\n"):
                    text += link.recv(4096)
                fields = dict(line.split("=", 1) for line in text.decode().split("\n") if line)
                target = fields["intended_target"]
                answer = (
                    "result=deny\n"
                    if target == REFUSED_TARGET
                    else f"result=allow\nuser=user\nautostart=False\ntarget={target}\n"
                    f"requested_target={target}\n"
                )
                link.sendall(answer.encode())


def await_true(condition: Callable[[], bool], what: str) -> None:
    """Wait for what starts; LabError after a minute."""
    end = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"{what} does not start")
        time.sleep(0.05)
