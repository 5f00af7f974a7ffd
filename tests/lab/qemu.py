# SPDX-License-Identifier: GPL-2.0-or-later
"""An emulated machine: its process, its monitor, and whether KVM can be used for it."""

import contextlib
import itertools
import json
import os
import shlex
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from .errors import LabError
from .image import Image, cache_folder
from .saved import Saved

QEMU = "qemu-system-x86_64"
PROBE_SECONDS, SAVED_SECONDS = 10, 60


def accelerator(image: Image) -> list[str]:
    """QEMU's options for the fastest way that works here.

    That /dev/kvm exists says little: where it is itself emulated, guests may hang in their BIOS.
    So boot the kernel once, and remember the answer until the host is restarted.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = cache_folder() / f"kvm-{boot}"
    if not known.exists():
        for old in cache_folder().glob("kvm-*"):
            old.unlink()
        known.write_text("yes" if _probe_kvm(image) else "no")
    if known.read_text() == "yes":
        return ["-accel", "kvm", "-cpu", "max"]
    # What `max` adds, as AVX and page tables of five levels, costs a fifth where it is emulated.
    return ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "qemu64,+rdrand"]


def _probe_kvm(image: Image) -> bool:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    command = [
        QEMU,
        "-accel",
        "kvm",
        "-cpu",
        "max",
        "-m",
        "256",
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-kernel",
        str(image.kernel),
        "-initrd",
        str(image.initrd),
        "-append",
        "console=ttyS0 panic=-1 lab.probe",
    ]
    try:
        probe = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return b"lab-probe-works" in probe.stdout


class Monitor:
    """QMP. Events are kept until somebody waits for them."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._data = b""
        self._events: list[dict[str, Any]] = []
        self._lock = threading.RLock()
        self._read(10)  # the greeting
        self.command("qmp_capabilities")

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def command(self, name: str, **arguments: Any) -> Any:
        """Run a command; returns its result. Raises LabError with QEMU's message."""
        with self._lock:
            request = {"execute": name, "arguments": arguments}
            try:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
                while True:
                    message = self._read(30)
                    if "return" in message:
                        return message["return"]
                    if "error" in message:
                        raise LabError(f"QEMU: {name}: {message['error']['desc']}")
                    self._events.append(message)
            except OSError as error:
                raise LabError(f"QEMU: {name}: {error or 'no answer'}") from error

    def forget(self, event: str) -> None:
        """Drop events of that name which happened before now."""
        self._events = [each for each in self._events if each["event"] != event]

    def wait(self, event: str, timeout: float, **data: Any) -> None:
        """Wait for an event with these data."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while True:
                for message in self._events:
                    if message["event"] == event and data.items() <= message["data"].items():
                        self._events.remove(message)
                        return
                try:
                    self._events.append(self._read(deadline - time.monotonic()))
                except OSError as error:
                    raise LabError(f"QEMU: no {event} {data} in {timeout:.0f} s") from error

    def _read(self, timeout: float) -> dict[str, Any]:
        while b"\n" not in self._data:
            self._socket.settimeout(max(timeout, 0.01))
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("the machine has gone")
            self._data += data
        line, _, self._data = self._data.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def _hardware(image: Image) -> list[str]:
    """QEMU's options for what each guest sees."""
    append = (
        "console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check net.ifnames=0 "
        "mitigations=off random.trust_cpu=on"
    )
    return [
        "-machine",
        "q35,sata=off,smbus=off,i8042=off,vmport=off,hpet=off,usb=off",
        "-m",
        "512",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-kernel",
        str(image.kernel),
        "-initrd",
        str(image.initrd),
        "-append",
        append,
        "-serial",
        "chardev:console",
        "-device",
        "virtio-blk-pci,drive=root",
        "-device",
        "virtio-serial-pci",
        "-device",
        "virtserialport,chardev=port,name=lab",
    ]


class Machine:
    """One guest's QEMU. To be started by a thread that lives as long: QEMU dies with it."""

    def __init__(
        self,
        name: str,
        image: Image,
        folder: Path,
        options: list[str],
        *,
        speed: list[str] | None = None,
    ) -> None:
        """`speed` is QEMU's accelerator options, the fastest if None."""
        self.name, self.folder = name, folder
        self.console = folder / f"{name}.console"
        self._port, self._qmp = folder / f"{name}.port", folder / f"{name}.qmp"
        self._written = folder / f"{name}.qcow2"
        hardware = [QEMU, *_hardware(image), *(speed or accelerator(image)), *options]
        # Not in virtual time, which begins with the guest, nor where the processor is the host's.
        is_kept = speed is None and "kvm" not in hardware
        self._saved = Saved(image.disk, hardware) if is_kept else None
        self._image = image
        self._command = [
            # so that no QEMU outlives a test run that was killed
            *([] if not shutil.which("setpriv") else ["setpriv", "--pdeathsig", "KILL"]),
            *hardware,
            "-name",
            self.name,
            "-chardev",
            f"file,id=console,path={self.console},append=on",
            "-chardev",
            f"socket,id=port,path={self._port},server=on,wait=off",
            "-qmp",
            f"unix:{self._qmp},server=on,wait=off",
        ]
        self.is_restored = False
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: Monitor | None = None

    def start(self) -> socket.socket:
        """Start it; returns the host's end of its port."""
        for path in (self._port, self._qmp, self._written):
            path.unlink(missing_ok=True)
        self.is_restored = self._saved is not None and self._saved.exists()
        if self._saved:
            drive = self._saved.drive(None if self.is_restored else self._written)
        else:
            drive = f"id=root,if=none,format=raw,snapshot=on,file={self._image.disk}"
        waiting = ["-incoming", "defer"] if self.is_restored else []
        with (self.folder / f"{self.name}.qemu").open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, "-drive", drive, *waiting],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                env={**os.environ, "TMPDIR": str(self.folder)},
            )
        self._monitor = Monitor(self._connect(self._qmp))
        port = self._connect(self._port)  # Before it runs: its agent has to see a host.
        if self._saved and self.is_restored:
            memory = shlex.quote(str(self._saved.memory))
            self._monitor.command("migrate-incoming", uri=f"exec:cat {memory}")
            self._await_status("paused")
            self._monitor.command("cont")
        return port

    def save(self) -> None:
        """Keep it as it is now, just booted, for the next of its kind."""
        if self._saved and not self.is_restored:
            self._saved.save(self._written, self._stop_and_write)
            self.monitor.command("cont")

    def _stop_and_write(self, path: Path) -> None:
        self.monitor.command("stop")
        self.monitor.command("migrate-set-parameters", **{"max-bandwidth": 1 << 34})
        self.monitor.command("migrate", uri=f"exec:cat >{shlex.quote(str(path))}")
        self._await_status("postmigrate")

    def _await_status(self, status: str) -> None:
        """Wait until QEMU has written or read a state."""
        deadline = time.monotonic() + SAVED_SECONDS
        while (now := self.monitor.command("query-status")["status"]) != status:
            if time.monotonic() > deadline:
                raise LabError(f"QEMU: {self.name} is {now} after {SAVED_SECONDS} s")
            time.sleep(0.05)

    def _connect(self, path: Path) -> socket.socket:
        for _ in itertools.repeat(None, 500):
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return connection
            except OSError:
                connection.close()
            if self._process and self._process.poll() is not None:
                break
            time.sleep(0.02)
        said = (self.folder / f"{self.name}.qemu").read_text(errors="replace")
        self.kill()
        raise LabError(f"QEMU of {self.name} does not start: {said}")

    @property
    def monitor(self) -> Monitor:
        """The monitor of the running machine."""
        if self._monitor is None:
            raise LabError(f"{self.name} is not running")
        return self._monitor

    def exchange_memory(self, address: int, data: bytes) -> bytes:
        """Write to the guest's virtual memory; gives what was there.

        In the protocol of gdb's remote targets, which stops the machine meanwhile.
        """
        path = self.folder / f"{self.name}.gdb"
        server = f"gdbserver unix:{path},server=on,wait=off"
        self.monitor.command("human-monitor-command", **{"command-line": server})
        try:
            with socket.socket(socket.AF_UNIX) as gdb:
                gdb.settimeout(10)
                gdb.connect(str(path))
                before = _ask_gdb(gdb, f"m{address:x},{len(data):x}")
                answer = _ask_gdb(gdb, f"M{address:x},{len(data):x}:{data.hex()}")
        finally:
            self.monitor.command("human-monitor-command", **{"command-line": "gdbserver none"})
            self.monitor.command("cont")
        if answer != "OK":
            raise LabError(f"{self.name}: no memory at {address:#x}: {answer}")
        return bytes.fromhex(before)

    def kill(self) -> None:
        """End it at once, as if its power had failed."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process = None
        if self._monitor:
            self._monitor.close()
            self._monitor = None


def _ask_gdb(gdb: socket.socket, command: str) -> str:
    """What gdb's stub answers to a command, but that the machine has stopped."""
    gdb.sendall(f"${command}#{sum(command.encode()) % 256:02x}".encode())
    said = b""
    while True:
        while b"#" not in said[:-2]:
            said += gdb.recv(4096)
        gdb.sendall(b"+")
        answer, _, rest = said.partition(b"$")[2].partition(b"#")
        if not answer.startswith(b"T"):
            return answer.decode()
        said = rest[2:]
