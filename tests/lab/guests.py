# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest: running things in it, its devices, and what can befall it."""

import contextlib
import itertools
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import CommandFailed, LabError
from .guest import wire
from .image import Image
from .qemu import Machine
from .router import Call, Completed, Router

BACKEND, FRONTEND = "sys-usb", "work"
CONSOLE_LINES = 40
AUDIO_OUTPUTS = 2
PLUG_SECONDS = 15
DATABASE = "/run/lab-qubesdb"
BUSYBOX = "/usr/lib/lab/busybox"

PORTS = {"xhci.0": "12345678", "ehci.0": "123456"}


class Guest:
    """One guest of the lab; made by it."""

    def __init__(
        self,
        name: str,
        image: Image,
        folder: Path,
        router: Router,
        smp: int,
        *,
        speed: list[str] | None = None,
    ) -> None:
        self.name, self._folder, self._router = name, folder, router
        options = ["-smp", str(smp)]
        if name == BACKEND:
            options += ["-device", "qemu-xhci,id=xhci,p2=8,p3=15", "-device", "usb-ehci,id=ehci"]
            for number in range(AUDIO_OUTPUTS):
                output = f"id=audio{number},path={self._audio_path(number).name}"
                options += ["-audiodev", f"wav,{output},out.frequency=48000"]
        self._machine = Machine(name, image, folder, options, speed=speed)
        self._ready = threading.Event()
        self._drives: dict[str, str] = {}  # device -> block node
        self._ports: dict[str, tuple[str, str]] = {}  # device -> controller and port
        self._audio: dict[str, int] = {}  # device -> audio output
        self._plugged: list[str] = []
        self._numbers = itertools.count()

    # Life and death

    def start(self) -> None:
        """Boot; see `wait_ready`."""
        self._ready = self._router.add(self.name, self._machine.start())
        if self._machine.is_restored:
            self._ready.set()  # It has said so before.

    def wait_ready(self, timeout: float) -> None:
        """Wait until the agent answers."""
        if not self._ready.wait(timeout):
            raise self.failure(f"not up after {timeout:.0f} s")
        self._machine.save()
        # The frontend's shell is that of Fedora and Arch, the backend's that of Debian.
        shell = "bash" if self.name == FRONTEND else "dash"
        self.run(f"ln -sfn {shell} /bin/sh; hostname {self.name}; date --set @{time.time()}")

    def kill(self) -> None:
        """SIGKILL its QEMU: no goodbye to anybody."""
        self._machine.kill()
        self._plugged.clear()
        self._drives.clear()
        self._audio.clear()
        self._ports.clear()

    def restart(self, timeout: float = 120) -> None:
        """Kill it and boot it afresh, with nothing plugged in and a new disk."""
        self.kill()
        self.start()
        self.wait_ready(timeout)

    def freeze(self) -> None:
        """Stop its processors."""
        self._machine.monitor.command("stop")

    def thaw(self) -> None:
        """Let them run again."""
        self._machine.monitor.command("cont")

    @contextlib.contextmanager
    def broken_kernel(self, function: str, code: bytes) -> Iterator[None]:
        """For the time of a `with`, a function of its kernel or modules begins with other code."""
        found = self.run(f"awk '$3 == \"{function}\" {{ print $1 }}' /proc/kallsyms").text
        address = int(found, 16)
        before = self._machine.exchange_memory(address, code)
        try:
            yield
        finally:
            self._machine.exchange_memory(address, before)

    def console(self) -> str:
        """All that came over its serial line."""
        path = self._machine.console
        return path.read_text(errors="replace") if path.exists() else ""

    def failure(self, text: str) -> LabError:
        """An exception with the end of the console."""
        tail = "\n".join(self.console().splitlines()[-CONSOLE_LINES:])
        return LabError(f"{self.name}: {text}\n--- console of {self.name}:\n{tail}")

    # Things to do in it

    def run(
        self,
        command: str,
        user: str = "root",
        stdin: bytes = b"",
        timeout: float = 60,
        check: bool = True,
    ) -> Completed:
        """Run a shell command. With `check`, another code than 0 raises CommandFailed."""
        try:
            done = self.start_command(command, user, stdin).wait(timeout)
        except LabError as error:
            raise self.failure(f"{command}: {error}") from error
        if check and done.code:
            said = f"{done.stderr.decode(errors='replace')}{done.text[-2000:]}"
            raise CommandFailed(self.failure(f"{command}: code {done.code}: {said}"))
        return done

    def start_command(self, command: str, user: str = "root", stdin: bytes = b"") -> Call:
        """Start a shell command in the background; `Call.cancel` kills it and its children."""
        return self._router.call(self.name, wire.EXEC, user, command, stdin)

    def start_service(self, service: str, stdin: bytes = b"", user: str = "root") -> Call:
        """Start a service's call from dom0."""
        return self._router.call(self.name, wire.SERVICE, user, service, stdin)

    def wait_for(self, condition: str, timeout: float = 30, then: str = ":") -> Completed:
        """Wait until a shell condition holds in the guest, and run another command there `then`."""
        loop = f"until {{ {condition}\n}} >/dev/null 2>&1; do sleep 0.1; done; {then}"
        try:
            return self.run(loop, timeout=timeout)
        except LabError as error:
            raise self.failure(f"waited {timeout:.0f} s for: {condition}") from error

    def read(self, path: str) -> bytes:
        """A file's contents."""
        return self.run(f"cat {shlex.quote(path)}").stdout

    def write(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Write a file, making its folder where needed; nobody sees a part of it.

        udev may read its rules at any moment, and takes them for unchanged from then on.
        """
        name, fresh = shlex.quote(path), shlex.quote(f"{path}.fresh")
        self.run(
            f'mkdir -p "$(dirname {name})" && cat >{fresh} && chmod {mode:o} {fresh}'
            f" && mv -f {fresh} {name}",
            stdin=data if isinstance(data, bytes) else data.encode(),
        )

    def push(self, source: Path, path: str) -> None:
        """Copy a file of the host into the guest, with its mode."""
        self.write(path, source.read_bytes(), source.stat().st_mode & 0o777)

    def database(self) -> dict[str, bytes]:
        """The whole QubesDB, by key."""
        done = self._router.call(self.name, wire.READ, "root", DATABASE, b"").wait(60)
        if done.code:
            raise self.failure(f"{DATABASE} cannot be read: code {done.code}")
        data = done.stdout
        found = {}
        while data:
            name, size, data = data.split(b"\0", 2)
            found[name.decode().replace("%", "/")] = data[: int(size)]
            data = data[int(size) :]
        return found

    # Devices

    def plug(
        self, driver: str, id: str, bus: str = "xhci.0", port: str | None = None, **properties: Any
    ) -> None:
        """Plug in a QEMU device at `port`, like `3`, or `3.1` behind a hub on port 3.

        Without a port a USB device takes the first free one of its controller, so that the first
        on `xhci.0` is `2-1` or `1-1` in the guest (5000 or at most 480 Mbit/s), on `ehci.0` `3-1`.
        """
        if port is None and bus in PORTS:
            taken = self._ports.values()
            port = next((p for p in PORTS[bus] if (bus, p) not in taken), None)
        if port is not None:
            properties["port"] = port
        self._machine.monitor.command("device_add", driver=driver, id=id, bus=bus, **properties)
        self._plugged.append(id)
        if port is not None:
            self._ports[id] = (bus, port)

    def add_drive(self, node: str, path: Path) -> None:
        """Make a raw file of the host a block node, for a device's `drive` property."""
        self._machine.monitor.command(
            "blockdev-add",
            driver="raw",
            **{"node-name": node},
            file={"driver": "file", "filename": str(path)},
        )

    def add_zeroes(self, node: str, size: int) -> None:
        """Make a block node without a file: it answers at once, with zeroes."""
        self._machine.monitor.command(
            "blockdev-add", driver="null-co", size=size, **{"node-name": node, "read-zeroes": True}
        )

    def plug_storage(
        self,
        id: str,
        source: Path | int,
        bus: str = "xhci.0",
        port: str | None = None,
        **properties: Any,
    ) -> Path:
        """Plug in a USB disk on a file, or on a new empty one of that many bytes."""
        path = (
            self._folder / f"{id}-{next(self._numbers)}.img"
            if isinstance(source, int)
            else (source)
        )
        if isinstance(source, int):
            with path.open("wb") as file:
                file.truncate(source)
        node = f"drive-{next(self._numbers)}"
        self.add_drive(node, path)
        self._drives[id] = node
        self.plug("usb-storage", id, bus, port, drive=node, **{"serial": id, **properties})
        return path

    def plug_keyboard(
        self, id: str, bus: str = "xhci.0", port: str | None = None, **properties: Any
    ) -> None:
        """Plug in a keyboard; see `send_key`."""
        self.plug("usb-kbd", id, bus, port, **properties)

    def plug_audio(
        self, id: str, wav: Path, bus: str = "xhci.0", port: str | None = None, **properties: Any
    ) -> None:
        """Plug in a sound card. What it plays is in the file `wav` once it is unplugged.

        The card starts at 240 of 256; at 256 the samples arrive as they were sent.
        """
        free = set(range(AUDIO_OUTPUTS)) - set(self._audio.values())
        if not free:
            raise LabError(f"no more than {AUDIO_OUTPUTS} sound cards at once")
        number = self._audio[id] = min(free)
        # QEMU cannot add an output while it runs: so its file is a link, made anew each time.
        link = self._audio_path(number)
        link.unlink(missing_ok=True)
        link.symlink_to(wav.absolute())
        self.plug("usb-audio", id, bus, port, audiodev=f"audio{number}", **properties)

    def plug_serial(
        self, id: str, bus: str = "xhci.0", port: str | None = None, **properties: Any
    ) -> None:
        """Plug in a serial adapter; what is sent to it is read with `serial_output`."""
        monitor = self._machine.monitor
        if id not in {each["label"] for each in monitor.command("query-chardev")}:
            monitor.command("chardev-add", id=id, backend={"type": "ringbuf", "data": {}})
        properties = {"always-plugged": True, "chardev": id, **properties}
        self.plug("usb-serial", id, bus, port, **properties)

    def serial_output(self, id: str) -> str:
        """What was sent to a serial adapter since this was asked last, at most 64 KiB."""
        answer = self._machine.monitor.command("ringbuf-read", device=id, size=65536)
        return str(answer)

    def plug_hub(
        self, id: str, bus: str = "xhci.0", port: str | None = None, **properties: Any
    ) -> None:
        """Plug in a full-speed hub of eight ports."""
        self.plug("usb-hub", id, bus, port, **properties)

    def unplug(self, id: str) -> None:
        """Pull out a device, with those behind it if it is a hub."""
        monitor = self._machine.monitor
        monitor.forget("DEVICE_DELETED")
        monitor.command("device_del", id=id)
        monitor.wait("DEVICE_DELETED", PLUG_SECONDS, device=id)
        bus, hub = self._ports.get(id, ("", ""))
        gone = [
            other
            for other, (its_bus, port) in self._ports.items()
            if (its_bus, port.rpartition(".")[0]) == (bus, hub)
        ]
        for each in (id, *gone):
            self._forget(each)

    def _forget(self, id: str) -> None:
        """What was known of a device that has gone."""
        self._plugged.remove(id)
        self._audio.pop(id, None)
        self._ports.pop(id, None)
        node = self._drives.pop(id, None)
        if node:
            self._release_drive(node)

    def port(self, id: str) -> str:
        """The port of its controller that a device is plugged into."""
        return self._ports[id][1]

    def unplug_all(self) -> None:
        """Pull out every device, those behind a hub before it."""
        while self._plugged:
            self.unplug(self._plugged[-1])

    def _release_drive(self, node: str) -> None:
        for last in (False,) * 20 + (True,):
            try:
                self._machine.monitor.command("blockdev-del", **{"node-name": node})
                return
            except LabError:
                if last:
                    raise
                time.sleep(0.05)  # requests that are under way still hold it

    def send_key(self, *keys: str) -> None:
        """Press keys together, by QEMU's names (`a`, `shift`, `ret`), and let them go."""
        pressed = [{"type": "qcode", "data": key} for key in keys]
        self._machine.monitor.command("send-key", keys=pressed)

    def _audio_path(self, number: int) -> Path:
        return self._folder / f"audio{number}.wav"
