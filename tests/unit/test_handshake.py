# SPDX-License-Identifier: GPL-2.0-or-later
"""The line between backend and frontend, and showing what the other side says."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usb_proxy.errors import ExitCode, PeerError, UsbProxyError, printable, reason
from usb_proxy.handshake import LINE_LIMIT, decode, encode
from usb_proxy.kernel import SPEEDS

DEVIDS = st.builds(lambda bus, dev: bus << 16 | dev, st.integers(1, 65535), st.integers(1, 65535))


@given(
    devid=DEVIDS, text=st.sampled_from(sorted(SPEEDS)), third=st.sampled_from([b"", b" ", b" x y"])
)
def test_an_offer_survives_the_line(devid: int, text: str, third: bytes) -> None:
    line = encode(devid, text)
    assert re.fullmatch(rb"[0-9]+ [0-9.-]+\n", line)
    offer = decode(line[:-1] + third + b"\n")
    assert (offer.devid, offer.speed) == (devid, SPEEDS[text])


@pytest.mark.parametrize(
    ("text", "speed"),
    [("1.5", 1), ("12", 2), ("480", 3), ("53.3-480", 4), ("5000", 5), ("10000", 6), ("20000", 6)],
)
def test_every_speed_of_the_kernel_is_known(text: str, speed: int) -> None:
    assert decode(f"131074 {text}\n".encode()).speed == speed


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"",
            b"\n",
            b" \n",
            b"131074",
            b"131074 480",
            b"131074\n",
            b"131074 \n",
            b" 480\n",
            b"480\n",
        ),
        *(
            b"131074\t480\n",
            b"131074  480\n",
            b" 131074 480\n",
            b"131074 480\r\n",
            b"131074 480\0\n",
        ),
        *(b"-1 480\n", b"+131074 480\n", b"0 480\n", b"4294967296 480\n", b"4295098370 480\n"),
        *(
            b"99999999999999999999999999 480\n",
            b"9" * 78 + b" 1\n",
            b"0x20002 480\n",
            b"1_31074 480\n",
        ),
        *(
            b"131072 480\n",
            b"2 480\n",
            b"65535 480\n",
            b"131074.0 480\n",
            b"1e6 480\n",
            b"None 480\n",
        ),
        *(b"131074 481\n", b"131074 0\n", b"131074 super\n", b"131074 480 ", b"131074 \xb2\n"),
        *(
            b"\xd9\xa1 480\n",
            b"131074 480 \xff\n",
            b"\xff\xfe\n",
            b"131074 480\n\n",
            b"\n131074 480\n",
        ),
        *(b"131074 480\tx\n", b"131074 480 " + b"x" * LINE_LIMIT + b"\n"),
    ],
)
def test_what_is_no_offer_is_refused(line: bytes) -> None:
    with pytest.raises(PeerError, match=r"^[ -~]{1,200}$"):
        decode(line)


@given(
    line=st.binary(max_size=100) | st.from_regex(rb"[0-9\xff]{0,12}[ \t]?[0-9.-]{0,8}[ x]{0,3}\n")
)
def test_any_bytes_are_an_offer_or_an_error_of_the_peer(line: bytes) -> None:
    try:
        offer = decode(line)
    except PeerError as error:
        assert re.fullmatch(r"[ -~]{1,200}", str(error))
    else:
        assert offer.devid == int(line.split(b" ")[0])
        assert 2**16 < offer.devid < 2**32


@given(untrusted=st.binary(max_size=3000), limit=st.integers(3, 700))
def test_what_is_shown_is_one_bounded_line_of_ascii(untrusted: bytes, limit: int) -> None:
    shown = printable(untrusted, limit)
    assert re.fullmatch(r"[ -~]*", shown)
    assert len(shown) <= limit
    assert shown == shown.strip()


@given(words=st.lists(st.from_regex(r"[!-~]{1,20}", fullmatch=True), max_size=20))
def test_what_is_harmless_is_shown_as_it_is(words: list[str]) -> None:
    assert printable("\n".join(words).encode()) == " ".join(words)


def test_a_long_text_is_cut_visibly() -> None:
    assert printable(b"x" * 700 + b"[UP-301]") == "x" * 567 + "..." + "x" * 22 + "[UP-301]"
    assert printable(b"\033[31mred\033[0m\r\n\xff\x7f!") == "[31mred [0m !"


def test_exit_codes_differ_and_leave_the_shells_alone() -> None:
    codes = [kind.code for kind in UsbProxyError.__subclasses__()]
    assert len(codes) == len(set(codes))
    assert {ExitCode.OK, ExitCode.INTERNAL}.isdisjoint(codes)
    assert all(code < 125 for code in codes)


def test_a_reason_is_given_without_the_name_of_the_file() -> None:
    assert reason(OSError(16, "Device or resource busy", "/sys/x")) == "Device or resource busy"
    assert reason(OSError()) == "error None"
