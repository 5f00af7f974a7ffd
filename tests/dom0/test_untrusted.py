# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a backend writes: bounded, allow-listed, and no harm to its other entries."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from usb_proxy.dom0 import untrusted
from usb_proxy.dom0.untrusted import Description, bus_ids, description, frontend, interfaces

HOSTILE = st.binary(max_size=300) | st.text(alphabet=string.printable + "\\x\0:", max_size=300).map(
    str.encode
)
SAFE = set(string.ascii_letters + string.digits + " ()+,-.:/_&#")
SAFE_SERIAL = set(string.ascii_letters + string.digits + "#+-.:=@_")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"1050:0407 Yubico Key\\x204 0001", ("1050", "0407", "Yubico", "Key 4", "0001")),
        (b"ABCD:00ff A\\x20B  ", ("abcd", "00ff", "A B", "", "")),
        (b"1234:5678 " + b"x" * 999, ("1234", "5678", "x" * untrusted.TEXT_LIMIT, "", "")),
        (b"1234:5678", ("1234", "5678", "", "", "")),
        (b"1234:5678  Name S\\x2b1 more", ("1234", "5678", "", "Name", "S+1")),
        (b"1234:5678 \xc3\xa9'\"\\x0a= \\xZZ \\x3a*", ("1234", "5678", "______", "_xZZ", ":_")),
        (b"", None),
        (b"12345:678 x", None),
        (b"1234:5678x", None),
        (None, None),
    ],
)
def test_descriptions(said: bytes | None, expected: tuple[str, ...] | None) -> None:
    assert description(said) == (expected and Description(*expected))


@settings(deadline=None)  # processors are shared
@given(HOSTILE, st.booleans())
@example(b"  @=", True)
def test_any_description(noise: bytes, prefix: bool) -> None:
    found = description(b"1234:5678 " + noise if prefix else noise)
    if prefix:
        assert found is not None
    for text in found or ():
        assert len(text) <= untrusted.TEXT_LIMIT
        assert text == text.strip()
    if found:
        assert set("".join(found[:-1])) <= SAFE
        assert set(found.serial) <= SAFE_SERIAL
        assert "_______" not in found.serial


@settings(deadline=None)  # processors are shared
@given(st.lists(st.text("0123456789abcdefABCDEF", min_size=6, max_size=6), max_size=20))
def test_interfaces(codes: list[str]) -> None:
    assert interfaces(":".join(["", *codes, ""]).encode()) == [code.lower() for code in codes]


@settings(deadline=None)  # processors are shared
@given(HOSTILE)
def test_any_interfaces(noise: bytes) -> None:
    found = interfaces(b":030101:" + noise.replace(b":", b"") + b":080650:")
    assert found[0] == "030101"
    assert found[-1] == "080650"
    assert all(len(code) == 6 and set(code) <= set("0123456789abcdef") for code in found)
    assert len(interfaces(noise * 1000)) <= untrusted.INTERFACES_LIMIT


@settings(deadline=None)  # processors are shared
@given(HOSTILE)
def test_any_frontend(noise: bytes) -> None:
    assert frontend(b"work") == "work"
    found = frontend(noise)
    assert found is None or found.encode() == noise
    assert frontend(None) is None


@settings(deadline=None)  # processors are shared
@given(st.lists(HOSTILE.map(lambda text: b"/qubes-usb-devices/" + text) | HOSTILE))
def test_any_ports(noise: list[bytes]) -> None:
    ours: list[bytes | str] = [b"/qubes-usb-devices/1-1_4/desc", "/qubes-usb-devices/2-1/desc"]
    found = bus_ids([*noise, *ours, "/qubes-usb-devices/3-1/connected-to"])
    assert {"1-1.4", "2-1"} <= set(found)
    assert "3-1" not in found
    assert all(set(port) <= set("0123456789-.") for port in found)


@pytest.mark.parametrize(
    "key", ["1-1.4", "usb1", "1-1:1_0", "01-1", "1-", "-1", "1-1_", "1-0", "1_1", "1-1/x", "é-1"]
)
def test_what_is_no_port(key: str) -> None:
    assert bus_ids([f"/qubes-usb-devices/{key}/desc"]) == []


def test_ports_are_bounded() -> None:
    paths = [f"/qubes-usb-devices/{bus}-{port}/desc" for bus in range(1, 99) for port in range(99)]
    assert len(bus_ids(paths)) == untrusted.DEVICES_LIMIT
