# SPDX-License-Identifier: GPL-2.0-or-later
"""The same for what dom0 reads: a backend's QubesDB, and the list of names."""

from __future__ import annotations

import os
import re
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tests.dom0.conftest  # noqa: F401 (which makes `qubes` importable)
from usb_proxy.dom0 import records, untrusted
from usb_proxy.dom0.device import USBDevice
from usb_proxy.dom0.usb_ids import NAME_LIMIT, UsbIds
from usb_proxy.idents import BusId, DomainName

from .targets import require

ROOT = "/qubes-usb-devices"
TEXT = set(string.ascii_letters + string.digits + " ()+,-./:_&#=@")
IDENTITY = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}:[0-9A-Za-z#+.:=@_-]*:(u[0-9a-f]{6})+|.*:\?\*{6}")

_FILE = os.memfd_create("usb.ids")


class Database(dict[str, bytes]):
    """QubesDB's Python interface: each line of the input is one key with `=` and a value."""

    def __init__(self, data: bytes) -> None:
        for line in data.split(b"\n"):
            key, _, value = line.partition(b"=")
            self[f"{ROOT}/{key.decode('ascii', 'replace')}"] = value

    def read(self, path: str) -> bytes | None:
        return self.get(path)

    def list(self, prefix: str) -> list[str]:
        return [path for path in self if path.startswith(prefix)]


def _backend(data: bytes) -> Any:
    """A running qube with this QubesDB, on a machine with one other."""
    domains: dict[str, Any] = {}
    app = SimpleNamespace(domains=domains, vmm=SimpleNamespace(offline_mode=False))
    for name in ("sys-usb", "work"):
        domains[name] = SimpleNamespace(
            name=name, klass="AppVM", app=app, is_running=lambda: True, untrusted_qdb=Database(data)
        )
    return domains["sys-usb"]


def at_paths(data: bytes) -> None:
    """Ports that are bus ids, with every good one among them, and not too many."""
    ours = f"{ROOT}/1-1_4/desc".encode()
    lines = data.split(b"\n")
    found = untrusted.bus_ids([ours, *lines, *(line.decode("latin-1") for line in lines)])
    require(found == sorted(set(found)) and BusId("1-1.4") in found, found)
    require(len(found) <= untrusted.DEVICES_LIMIT, len(found))
    require(all(BusId(port) == port for port in found), found)


def at_description(data: bytes) -> None:
    """Texts of harmless characters, bounded, or nothing."""
    for said in (untrusted.description(data), untrusted.description(b"1050:0407 " + data)):
        for text in said or ():
            require(set(text) <= TEXT and len(text) <= untrusted.TEXT_LIMIT, text)
            require(text == text.strip(), text)
        require(said is None or (" " not in said.serial and "_______" not in said.serial), said)
    require(untrusted.description(b"1050:0407 " + data) is not None)


def at_interfaces(data: bytes) -> None:
    """Six hexadecimal digits each, and a good one is not lost among bad ones."""
    found = untrusted.interfaces(b":030101:" + data)
    require(found[0] == "030101", found)
    require(all(re.fullmatch("[0-9a-f]{6}", code) for code in found), found)
    require(len(found) <= untrusted.VALUE_LIMIT // 7 + 1, len(found))


def at_frontend(data: bytes) -> None:
    """The name as it was written, or nothing."""
    name = untrusted.frontend(data)
    require(name is None or (name.encode() == data and DomainName(name) == name), name)


def at_device(data: bytes) -> None:
    """Each device has an identity that survives the admin API, and is nowhere or with a qube."""
    backend = _backend(data)
    for port in records.ports(backend):
        device = USBDevice.at(backend, port)
        require(IDENTITY.fullmatch(device.device_id), device.device_id)
        require("_______" not in device.device_id, device.device_id)
        for text in (device.manufacturer, device.name, device.serial, device.description):
            require(text.isascii() and text.isprintable() and len(text) < 2000, text)
        where = records.frontend(backend, port)
        holder = device.attachment
        require(holder is None or holder.name == where == "work", where)


def at_usb_ids(data: bytes) -> None:
    """Printable names that stand in the file, whatever file that is."""
    os.ftruncate(_FILE, 0)
    os.pwrite(_FILE, data, 0)
    for name in UsbIds(Path(f"/proc/self/fd/{_FILE}")).names("1050", "0407"):
        if name is not None:
            require(name.isascii() and name.isprintable(), name)
            require(len(name) <= NAME_LIMIT, name)
            start = name.partition("_")[0].encode()
            require(start in data, name)


TARGETS = {
    "dom0_paths": at_paths,
    "dom0_description": at_description,
    "dom0_interfaces": at_interfaces,
    "dom0_frontend": at_frontend,
    "dom0_device": at_device,
    "dom0_usb_ids": at_usb_ids,
}
