#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A phone with USB debugging: runs in a guest, on the kernel's gadget framework and dummy_hcd.

Like Android's adbd, it leaves the bus when it is deconfigured, reset, or configured a second time,
and comes back. `/run/phone/settings` says how, in JSON, and is read anew each time:
drop and away: seconds until it leaves and until it comes back; bounces: how often it does that;
returns: as the same, as another (a bootloader), as a keyboard by the same names, at high speed on
the companion bus, or never.
What is sent to it comes back. `/run/phone/log` tells what happened.
"""

import json
import os
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

HOME = Path("/run/phone")
GADGET = Path("/sys/kernel/config/usb_gadget/phone")
ENDPOINTS = HOME / "endpoints"
SETTINGS = {"drop": 0.02, "away": 0.5, "bounces": 1, "returns": "same", "udc": "dummy_udc.0"}
VENDOR, PRODUCT, BOOTLOADER = "0x18d1", "0x4ee7", "0x4ee0"
KEYBOARD = GADGET / "functions/hid.keyboard"
KEYS = bytes.fromhex(
    "05010906a101050719e029e71500250175019508810295067508 150025650507190029658100c0"
)
"""A report descriptor: eight modifiers, and six keys (HID 1.11, appendix B.1)."""

# linux/usb/functionfs.h
DESCRIPTORS_MAGIC, STRINGS_MAGIC = 3, 2
HAS_SPEEDS = 1 | 2 | 4
CHUNK = 8192
EVENT_SIZE, EVENTS = 12, ("bind", "unbind", "enable", "disable", "setup", "suspend", "resume")


def settings() -> dict[str, Any]:
    """How it behaves now."""
    try:
        return {**SETTINGS, **json.loads((HOME / "settings").read_text())}
    except FileNotFoundError:
        return SETTINGS


def log(text: str) -> None:
    """Tell what happened, and when."""
    with (HOME / "log").open("a") as file:
        file.write(f"{time.monotonic():.3f} {text}\n")


def descriptors() -> bytes:
    """One interface ff/42/01 with a bulk endpoint in either direction, for each speed."""
    interface = struct.pack("<9B", 9, 4, 0, 0, 2, 0xFF, 0x42, 0x01, 1)
    companion = struct.pack("<BBBBH", 6, 0x30, 0, 0, 0)
    blocks = []
    for size, extra in ((64, b""), (512, b""), (1024, companion)):
        block = interface
        for address in (0x01, 0x82):
            block += struct.pack("<BBBBHB", 7, 5, address, 2, size, 0) + extra
        blocks.append(block)
    counts = struct.pack("<3I", 3, 3, 5)
    body = counts + b"".join(blocks)
    return struct.pack("<3I", DESCRIPTORS_MAGIC, 12 + len(body), HAS_SPEEDS) + body


def strings() -> bytes:
    """The interface's name."""
    body = struct.pack("<2IH", 1, 1, 0x0409) + b"ADB Interface\0"
    return struct.pack("<2I", STRINGS_MAGIC, 8 + len(body)) + body


class Phone:
    """The gadget, and the files of its function."""

    def __init__(self) -> None:
        for module in ("libcomposite", "usb_f_fs"):
            subprocess.run(["modprobe", module], check=True)
        if not os.path.ismount("/sys/kernel/config"):
            subprocess.run(["mount", "-t", "configfs", "none", "/sys/kernel/config"], check=True)
        for folder in ("strings/0x409", "configs/c.1/strings/0x409", "functions/ffs.phone"):
            (GADGET / folder).mkdir(parents=True)
        self._set("idVendor", VENDOR)
        self._set("idProduct", PRODUCT)
        self._set("strings/0x409/manufacturer", "Lab")
        self._set("strings/0x409/product", "Phone")
        self._set("strings/0x409/serialnumber", "0123456789ABCDEF")
        (GADGET / "configs/c.1/ffs.phone").symlink_to(GADGET / "functions/ffs.phone")
        ENDPOINTS.mkdir(parents=True)
        subprocess.run(["mount", "-t", "functionfs", "phone", ENDPOINTS], check=True)
        self._control = os.open(ENDPOINTS / "ep0", os.O_RDWR)
        os.write(self._control, descriptors())
        os.write(self._control, strings())
        threading.Thread(target=self._echo, daemon=True).start()

    def _be_keyboard(self) -> None:
        """Instead of a phone, while it is not plugged in."""
        (GADGET / "configs/c.1/ffs.phone").unlink(missing_ok=True)
        KEYBOARD.mkdir(exist_ok=True)
        for name, number in (("protocol", 1), ("subclass", 1), ("report_length", 8)):
            (KEYBOARD / name).write_text(str(number))
        (KEYBOARD / "report_desc").write_bytes(KEYS)
        (GADGET / "configs/c.1/hid.keyboard").symlink_to(KEYBOARD)

    def _set(self, name: str, text: str) -> None:
        (GADGET / name).write_text(text)

    def _echo(self) -> None:
        out = os.open(ENDPOINTS / "ep1", os.O_RDWR)
        back = os.open(ENDPOINTS / "ep2", os.O_RDWR)
        while True:
            try:
                os.write(back, os.read(out, CHUNK))
            except OSError:
                time.sleep(0.01)

    def appear(self) -> None:
        """Plug it in, unless it is to stay away, or somebody has just done so."""
        if settings()["returns"] != "never":
            log("appears")
            try:
                self._set("UDC", settings()["udc"])
            except OSError:
                log("is plugged in")

    def _leave(self) -> None:
        log("leaves")
        try:
            self._set("UDC", "\n")
        except OSError:
            log("is unplugged")
        # What is known of the old connection is of no use for the new one.
        os.set_blocking(self._control, False)
        while True:
            try:
                os.read(self._control, 4 * EVENT_SIZE)
            except BlockingIOError:
                break
        os.set_blocking(self._control, True)

    def _bounce(self) -> None:
        now = settings()
        for _ in range(now["bounces"]):
            time.sleep(now["drop"])
            self._leave()
            if now["returns"] == "other":
                self._set("idProduct", BOOTLOADER)
            elif now["returns"] == "keyboard":
                self._be_keyboard()
            elif now["returns"] == "high":
                self._set("max_speed", "high-speed")
            time.sleep(now["away"])
            self.appear()

    def run(self) -> None:
        """Live."""
        enabled = False
        while True:
            data = os.read(self._control, 4 * EVENT_SIZE)
            for at in range(0, len(data), EVENT_SIZE):
                event = EVENTS[data[at + 8]]
                log(event)
                if event == "disable" or (event == "enable" and enabled):
                    enabled = False
                    self._bounce()
                    break
                enabled = event == "enable" or (enabled and event != "unbind")


if __name__ == "__main__":
    HOME.mkdir(exist_ok=True)
    phone = Phone()
    phone.appear()
    phone.run()
