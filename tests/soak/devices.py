# SPDX-License-Identifier: GPL-2.0-or-later
"""The devices that go to and fro, and the traffic that shows whether each one works."""

from __future__ import annotations

import hashlib
import random
import threading
from pathlib import Path

from tests.lab.guests import Guest
from tests.lab.qubes import Qubes
from tests.lab.router import Call

DISK_BYTES = 256 << 10
BLOCK_BYTES = 32 << 10
READY_SECONDS = 60

_plugging = threading.Lock()
"""QEMU's monitor has one conversation at a time."""


class Wrong(Exception):
    """Something that must hold did not."""


def once_there(path: str) -> str:
    """A command that goes on when there is a file of this pattern, as `$file`.

    Guests are slow: waiting has to cost them little.
    """
    wait = f'until set -- {path}; test -e "$1"; do sleep 0.3; done; echo "$1"'
    return f"file=$(timeout {READY_SECONDS} sh -c '{wait}') || exit 99; "


class Device:
    """One device of sys-usb; `node` is its file in the qube that has it."""

    node = ""
    hub = ""
    """The hub that it is behind."""

    def __init__(self, qubes: Qubes, name: str, bus: str, port: str) -> None:
        self.qubes, self.name, self.bus, self.port = qubes, name, bus, port
        self.bus_id = ""

    def plug(self) -> None:
        """Plug it in, at the same port each time, and wait until sys-usb can use it."""
        with _plugging:
            if self.hub:
                self.qubes.backend.plug_hub(self.hub, self.bus, self.port.partition(".")[0])
            self._plug(self.qubes.backend)
        if self.bus_id:
            ready = f"test -e /sys/bus/usb/devices/{self.bus_id}:1.0/driver"
            self.qubes.backend.wait_for(ready, READY_SECONDS)
        else:
            ready = 'driver && test -e "$d":1.0/driver'
            self.bus_id = self.qubes.bus_id(self._attribute(), ready)

    def unplug(self) -> None:
        """Pull it out, and the hub that it is behind."""
        with _plugging:
            self.qubes.backend.unplug(self.name)
            if self.hub:
                self.qubes.backend.unplug(self.hub)

    def traffic(self, chance: random.Random) -> None:
        """Use it in work; Wrong if what arrives is not what was sent."""
        raise NotImplementedError

    def keep_busy(self) -> Call | None:
        """Traffic that goes on until the device has gone; None where there is no such."""
        return None

    def _attribute(self) -> str:
        raise NotImplementedError

    def _plug(self, guest: Guest) -> None:
        raise NotImplementedError

    def _run(self, command: str, stdin: bytes = b"") -> str:
        work = self.qubes.frontend
        done = work.run(once_there(self.node) + command, stdin=stdin, timeout=120, check=False)
        if done.code:
            look = "ls /sys/block /dev/disk/by-id /dev/input /dev/snd; dmesg | tail -n 8"
            said = done.stderr.decode(errors="replace")[-300:] + work.run(look, check=False).text
            raise Wrong(f"{self.name} cannot be used in work (code {done.code}): {said}")
        return done.text


class Disk(Device):
    """A stick: all of it is read, and a block of it written, and both compared with its file."""

    def __init__(self, qubes: Qubes, name: str, bus: str, port: str) -> None:
        super().__init__(qubes, name, bus, port)
        self.node = f"/dev/disk/by-id/usb-QEMU_QEMU_HARDDISK_{name}-0:0"
        self.hub = "hub" if "." in port else ""
        self.image: Path = qubes.lab.folder / f"{name}.soak"
        self.image.write_bytes(random.Random(name).randbytes(DISK_BYTES))

    def traffic(self, chance: random.Random) -> None:
        block, number = chance.randbytes(BLOCK_BYTES), chance.randrange(DISK_BYTES // BLOCK_BYTES)
        before = hashlib.sha256(self.image.read_bytes()).hexdigest()
        read = self._run(
            "dd if=$file bs=64k iflag=direct status=none | sha256sum &&"
            f" dd of=$file bs={BLOCK_BYTES} seek={number} iflag=fullblock oflag=direct"
            " conv=fsync status=none",
            block,
        ).split()[0]
        if read != before:
            raise Wrong(f"what work read from {self.name} is not what is on it")
        start = number * BLOCK_BYTES
        if self.image.read_bytes()[start : start + BLOCK_BYTES] != block:
            raise Wrong(f"what work wrote to {self.name} is not on it")

    def keep_busy(self) -> Call | None:
        read = f"while dd if={self.node} of=/dev/null bs=64k iflag=direct status=none; do :; done"
        return self.qubes.frontend.start_command(f"{read} 2>&-")

    def _attribute(self) -> str:
        return f"serial={self.name}"

    def _plug(self, guest: Guest) -> None:
        guest.plug_storage(self.name, self.image, self.bus, self.port)


class Serial(Device):
    """A serial adapter: a line is sent through it."""

    node = "/dev/ttyUSB*"

    def traffic(self, chance: random.Random) -> None:
        sent = chance.randbytes(500).hex()
        self.qubes.backend.serial_output(self.name)
        self._run("stty -F $file raw -echo && cat > $file", sent.encode())
        if self.qubes.backend.serial_output(self.name) != sent:
            raise Wrong(f"what work sent to {self.name} did not arrive")

    def _attribute(self) -> str:
        return "product=QEMU USB SERIAL"

    def _plug(self, guest: Guest) -> None:
        guest.plug_serial(self.name, self.bus, self.port)


class Keyboard(Device):
    """A keyboard: a key is pressed until work has read it."""

    node = "/dev/input/by-id/usb-QEMU_QEMU_USB_Keyboard*-event-kbd"

    def traffic(self, chance: random.Random) -> None:
        key = chance.choice("abcdefgh")
        self._run("true")
        reading = self.qubes.frontend.start_command(
            once_there(self.node) + "exec timeout 60 dd if=$file bs=72 count=1 of=/dev/null"
        )
        while not reading.finished:
            self.qubes.backend.send_key(key)
            threading.Event().wait(0.5)
        if reading.wait(1).code:
            raise Wrong(f"no key of {self.name} arrived in work")

    def _attribute(self) -> str:
        return "product=QEMU USB Keyboard"

    def _plug(self, guest: Guest) -> None:
        guest.plug_keyboard(self.name, self.bus, self.port)


class Sound(Device):
    """A sound card, which has isochronous traffic: it plays without an error."""

    node = "/dev/snd/by-id/usb-QEMU_QEMU_USB_Audio*"

    def traffic(self, chance: random.Random) -> None:
        tone = chance.randbytes(48000 // 10 * 4)
        play = "aplay -q -D hw:$(basename $(readlink $file) | tr -dc 0-9),0 -t raw -f S16_LE"
        self._run(f"{play} -c 2 -r 48000 -", tone)

    def _attribute(self) -> str:
        return "product=QEMU USB Audio"

    def _plug(self, guest: Guest) -> None:
        guest.plug_audio(self.name, self.qubes.lab.folder / "soak.wav", self.bus, self.port)


def devices(qubes: Qubes) -> list[Device]:
    """One of each kind, none of them plugged in."""
    return [
        Disk(qubes, "super", "xhci.0", "1"),
        Disk(qubes, "high", "ehci.0", "1"),
        Disk(qubes, "deep", "xhci.0", "3.2"),
        Keyboard(qubes, "keyboard", "xhci.0", "2"),
        Serial(qubes, "serial", "xhci.0", "4"),
        Sound(qubes, "sound", "xhci.0", "5"),
    ]
