# SPDX-License-Identifier: GPL-2.0-or-later
"""Names: what is taken, what is not, and what is said about it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usb_proxy.errors import RequestError
from usb_proxy.idents import Attachment, BusId, DomainName, VendorProduct, parse_target, qubesdb_key

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBER = "[1-9][0-9]{0,2}"
BUS_ID = re.compile(rf"{NUMBER}-{NUMBER}(\.{NUMBER}){{0,5}}")
VENDOR_PRODUCT = re.compile(r"0x[0-9a-fA-F]{4}\.0x[0-9a-fA-F]{4}")
DOMAIN = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,30}|[a-zA-Z][a-zA-Z0-9_.-]{0,30}-dm")

ATTACHMENTS = [
    ("sys-usb-2-1", "sys-usb", "2-1"),
    ("a-1-1.4.2", "a", "1-1.4.2"),
    ("x-2-3-1", "x-2", "3-1"),
    ("sys-usb-dm-0x46f4.0x0001", "sys-usb-dm", "0x46f4.0x0001"),
]


@pytest.mark.parametrize(("text", "backend", "device"), ATTACHMENTS)
def test_an_attachment_has_a_backend_and_a_device(text: str, backend: str, device: str) -> None:
    attachment = Attachment(text)
    assert (attachment.backend, attachment.device) == (backend, device)
    assert f"{backend}-{device}" == attachment == text


@pytest.mark.parametrize(
    "text", ["", "-", "2-1", "-2-1", "work", "a-2", "a--1", "a-0x1", "a/b-2-1"]
)
def test_what_is_no_attachment(text: str) -> None:
    with pytest.raises(RequestError):
        Attachment(text)


BAD_ANYWHERE = [
    "",
    " ",
    "\n",
    "\0",
    "..",
    "../../etc/passwd",
    "../2-1",
    "/2-1",
    "$(reboot)",
    "`reboot`",
    "a;b",
    "2-1;reboot",
    "2-1|x",
    "2-1 ",
    " 2-1",
    "2-1\n",
    "\n2-1",
    "2-1\0",
    "2-1\t",
    "\N{ARABIC-INDIC DIGIT TWO}-\N{ARABIC-INDIC DIGIT ONE}",
    "2-\N{SUPERSCRIPT ONE}",
    "\N{FULLWIDTH DIGIT TWO}-1",
    "2\N{EN DASH}1",
    "\ud800",
    "é" * 40,
    "1" * 10000,
]
BAD_BUS_IDS = [
    *("1", "-", "-1", "1-", "1-.", "1-1.", "1-.1", "1-1..2", "1--1", "1-2-3", "1.1", "a-b", "+1-1"),
    *("0-1", "1-0", "1-1.0", "01-1", "1-01", "1-1.01", "1000-1", "1-1000", "1_1", "1-1_1", "0x1-1"),
    *("1-1.1.1.1.1.1.1", "2-1:1.0", "1-1.4:1.2", ":", "usb1", "usb", "usbx", "usb1-1", "USB1"),
    *(
        "1-1,2-1",
        "2-1/../2-2",
        "2-1*",
        "2-?",
        "2-[1]",
        "\\x32-1",
        "%32-1",
        "2-1#",
        "1-1." + "1" * 30,
    ),
]
BAD_VENDOR_PRODUCTS = [
    *(
        "0x",
        "0x1234",
        "0x1234.",
        "0x1234.0x",
        "0x1234.5678",
        "1234.5678",
        "1234:5678",
        "0x123.0x5678",
    ),
    *(
        "0x12345.0x678",
        "0x1234.0x56789",
        "0X1234.0X5678",
        "0x1234-0x5678",
        "0x12g4.0x5678",
        "0x1234.0x5678.0x9",
    ),
    *(
        "0x+234.0x5678",
        "0x1_34.0x5678",
        "0x 234.0x5678",
        "0x1234.0x5678\n",
        "0x1234.0x567\N{ARABIC-INDIC DIGIT ONE}",
    ),
]
BAD_DOMAINS = [
    *(
        "1work",
        "-work",
        "_work",
        ".work",
        "work/x",
        "work qube",
        "work\n",
        "wörk",
        "work:0",
        "@default",
    ),
    *(
        "$dispvm",
        "a" * 32,
        "a" * 32 + "-dm",
        "work\0",
        "-dm",
        "work@x",
        "work;x",
        "w\N{CYRILLIC SMALL LETTER O}rk",
    ),
]


def is_shown_well(error: RequestError) -> bool:
    """Whether a message is one short line of printable ASCII."""
    return re.fullmatch(r"[ -~]{1,300}", str(error)) is not None


@pytest.mark.parametrize("text", ["2-1", "1-1.4", "1-1.4.2", "999-999", "1-10.12", "3-1.2.3.4.5.6"])
def test_a_bus_id_is_taken_as_it_is(text: str) -> None:
    assert BusId(text) == parse_target(text) == text
    assert isinstance(parse_target(text), BusId)


@pytest.mark.parametrize("text", [*BAD_ANYWHERE, *BAD_BUS_IDS, "0x1234.0x5678"])
def test_what_is_no_bus_id_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        BusId(text)
    assert is_shown_well(caught.value)


@pytest.mark.parametrize(
    ("text", "hint"), [("2-1:1.0", "'2-1'"), ("usb1", "root hub"), ("2.1", "such as 2-1")]
)
def test_a_refusal_says_what_to_name_instead(text: str, hint: str) -> None:
    with pytest.raises(RequestError, match=hint):
        parse_target(text)


@pytest.mark.parametrize("text", ["0x1234.0x5678", "0xabcd.0xEF01", "0x0000.0x0000"])
def test_vendor_and_product_are_kept_and_lowered(text: str) -> None:
    target = parse_target(text)
    assert isinstance(target, VendorProduct)
    assert target == text
    assert (target.vendor, target.product) == (text[2:6].lower(), text[9:].lower())


@pytest.mark.parametrize("text", [*BAD_ANYWHERE, *BAD_VENDOR_PRODUCTS])
def test_what_is_no_vendor_and_product_is_refused(text: str) -> None:
    for parse in (VendorProduct, parse_target):
        if parse is VendorProduct or text.startswith("0x"):
            with pytest.raises(RequestError) as caught:
                parse(text)
            assert is_shown_well(caught.value)


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("work", "work"),
        ("a", "a"),
        ("Sys_usb-1.x", "Sys_usb-1.x"),
        ("a" * 31, "a" * 31),
        ("win-dm", "win"),
        ("a" * 31 + "-dm", "a" * 31),
        ("dm", "dm"),
        ("w-dm-dm", "w-dm"),
    ],
)
def test_a_qubes_name_is_taken_as_it_is(text: str, owner: str) -> None:
    assert DomainName(text) == text
    assert DomainName(text).owner == owner


@pytest.mark.parametrize("text", [*BAD_ANYWHERE, *BAD_DOMAINS])
def test_what_is_no_qubes_name_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        DomainName(text)
    assert is_shown_well(caught.value)


@pytest.mark.parametrize(("bus_id", "key"), [("2-1", "2-1"), ("1-1.4.2", "1-1_4_2")])
def test_a_key_has_no_dots(bus_id: str, key: str) -> None:
    assert qubesdb_key(BusId(bus_id)) == f"/qubes-usb-devices/{key}"


NEARLY = st.text(st.sampled_from("0123456789abcdfxXAF.-_:usbdm \n/\0٢²"), max_size=40)


@pytest.mark.parametrize(
    ("parse", "pattern"),
    [
        (BusId, BUS_ID),
        (VendorProduct, VENDOR_PRODUCT),
        (DomainName, DOMAIN),
        (parse_target, re.compile(f"{BUS_ID.pattern}|{VENDOR_PRODUCT.pattern}")),
    ],
    ids=["bus id", "vendor and product", "qube", "target"],
)
@given(
    text=st.text()
    | NEARLY
    | st.from_regex(BUS_ID)
    | st.from_regex(VENDOR_PRODUCT)
    | st.from_regex(DOMAIN)
)
def test_a_name_is_valid_and_unchanged_or_refused(
    parse: Callable[[str], str], pattern: re.Pattern[str], text: str
) -> None:
    try:
        assert parse(text) == text
    except RequestError as error:
        assert not pattern.fullmatch(text)
        assert is_shown_well(error)
    else:
        assert pattern.fullmatch(text)
