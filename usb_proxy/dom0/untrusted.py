# SPDX-License-Identifier: GPL-2.0-or-later
"""What a backend says in its QubesDB, which may be anything: bounded, and allow-listed.

Written by `udev-usb-add-change` of qubes-linux-utils and by this project's exporter.
"""

from __future__ import annotations

import re
import string
from binascii import unhexlify
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from usb_proxy.errors import RequestError
from usb_proxy.idents import QUBESDB, BusId, DomainName

ROOT = QUBESDB

VALUE_LIMIT = 4096
"""More than QubesDB can store for one key (QDB_MAX_DATA is 3072, qubesdb.h)."""

TEXT_LIMIT = 126
"""A string descriptor has 255 bytes at most: two for its head, two for each character."""

DEVICES_LIMIT = 127
"""Devices of one backend: as many as a USB bus has."""

INTERFACES_LIMIT = 32
"""Interfaces of one device: as many as a configuration has (USB_MAXINTERFACES, linux/usb.h)."""

_ESCAPED_LIMIT = 4 * TEXT_LIMIT
"""The same where each character is escaped, `\\x20`."""

_KEPT = 4 * DEVICES_LIMIT
"""Values whose meaning is kept: a list of what four qubes may expose costs no parsing again."""

_LETTERS_DIGITS = string.ascii_letters + string.digits


def _only(allowed: str) -> bytes:
    """A table for bytes.translate with `_` for whatever is not allowed."""
    return bytes(byte if chr(byte) in allowed else ord("_") for byte in range(256))


_TEXT = _only(_LETTERS_DIGITS + " ()+,-./:_&#")
_SERIAL = _only(_LETTERS_DIGITS + "#+-.:=@_")
"""What udev leaves in ID_SERIAL_SHORT: stored assignments have it."""

_BLANK = re.compile("_{7,}")
"""Seven in a row would come out of a qrexec argument as `?******` (VirtualDevice._parse)."""

_IDS = re.compile(rb"([0-9a-fA-F]{4}):([0-9a-fA-F]{4})(?: (.*))?", re.DOTALL)
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")
_INTERFACE = re.compile(rb"(?<![^:])[0-9a-fA-F]{6}(?![^:])")


class Description(NamedTuple):
    """A device in its own words; an empty text is one that it did not say."""

    vendor: str
    """Four lower-case hexadecimal digits, like `product`."""
    product: str
    manufacturer: str
    name: str
    serial: str


def bus_id(untrusted_text: str) -> BusId | None:
    """A port as dom0 names it, `1-1.4`, if it is one."""
    try:
        return BusId(untrusted_text)
    except RequestError:
        return None


def bus_ids(untrusted_paths: Iterable[bytes | str]) -> list[BusId]:
    """The ports that have a description, sorted; whatever is no port hides none of the others."""
    found: set[BusId] = set()
    for untrusted_path in untrusted_paths:
        if isinstance(untrusted_path, bytes):
            untrusted_path = untrusted_path.decode("ascii", errors="replace")  # noqa: PLW2901
        untrusted_key, _, leaf = untrusted_path.removeprefix(ROOT + "/").partition("/")
        # A key with a dot would be the same port as the one with `_` in its place.
        if leaf == "desc" and "." not in untrusted_key and len(found) < DEVICES_LIMIT:
            port = bus_id(untrusted_key.replace("_", "."))
            if port is not None:
                found.add(port)
    return sorted(found)


def description(untrusted_value: bytes | None) -> Description | None:
    """`VID:PID MANUFACTURER NAME SERIAL`; None if it does not even have the two numbers."""
    return _description((untrusted_value or b"")[:VALUE_LIMIT])


@lru_cache(_KEPT)
def _description(untrusted_value: bytes) -> Description | None:
    match = _IDS.fullmatch(untrusted_value)
    if match is None:
        return None
    untrusted_fields = [*(match[3] or b"").split(b" ", 3), b"", b"", b""]
    return Description(
        match[1].decode().lower(),
        match[2].decode().lower(),
        _text(untrusted_fields[0], _TEXT),
        _text(untrusted_fields[1], _TEXT),
        _BLANK.sub("______", _text(untrusted_fields[2], _SERIAL)),
    )


def interfaces(untrusted_value: bytes | None) -> list[str]:
    """`:CCSSPP:CCSSPP:` as a list of six lower-case hexadecimal digits."""
    return list(_interfaces((untrusted_value or b"")[:VALUE_LIMIT]))


@lru_cache(_KEPT)
def _interfaces(untrusted_value: bytes) -> tuple[str, ...]:
    found = islice(_INTERFACE.finditer(untrusted_value), INTERFACES_LIMIT)
    return tuple(each[0].decode().lower() for each in found)


def frontend(untrusted_value: bytes | None) -> DomainName | None:
    """The name of the qube that a device is said to be connected to."""
    try:
        return DomainName((untrusted_value or b"")[:64].decode("ascii"))
    except (RequestError, UnicodeDecodeError):
        return None


def _text(untrusted_field: bytes, allowed: bytes) -> str:
    """Undo udev's escapes (ID_VENDOR_ENC, ID_MODEL_ENC) and replace what is not allowed."""
    untrusted_bytes = _ESCAPE.sub(
        lambda found: unhexlify(found[1]), untrusted_field[:_ESCAPED_LIMIT]
    )
    safe = untrusted_bytes.strip().translate(allowed).decode("ascii")
    return safe[:TEXT_LIMIT].strip()
