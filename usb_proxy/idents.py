# SPDX-License-Identifier: GPL-2.0-or-later
"""Names: parsed once, immutable, and valid from then on."""

from __future__ import annotations

from usb_proxy.errors import RequestError, printable

BUS_ID_LIMIT = 31
"""usbip-host keeps names of at most 31 characters (SYSFS_BUS_ID_SIZE, drivers/usb/usbip/stub.h)."""

DOMAIN_NAME_LIMIT = 31
"""qrexec's `target_domain` is 32 bytes with its end (qrexec.h, struct trigger_service_params3)."""

QUBESDB = "/qubes-usb-devices"
"""All devices of a qube in its QubesDB; what is written to it is nothing, for dom0 to look."""

STUB_DOMAIN_SUFFIX = "-dm"

INTERFACES_LIMIT = 32
"""Interfaces of one device that are told of: USB_MAXINTERFACES (include/linux/usb.h)."""

_PORT_DEPTH = 6
"""A root port and five hubs: the seven tiers of USB with the root hub (USB 2.0, 4.1.1)."""

_HEX = frozenset("0123456789abcdefABCDEF")
_LOWER_HEX = frozenset("0123456789abcdef")
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_NAME = _LETTERS | frozenset("0123456789_.-")


def _is_number(untrusted_text: str) -> bool:
    """Whether this is 1 to 999 in decimal, without leading zeros."""
    return (
        untrusted_text.isascii()
        and untrusted_text.isdigit()
        and untrusted_text[0] != "0"
        and len(untrusted_text) <= 3
    )


def _is_bus_id(untrusted_text: str) -> bool:
    bus, dash, rest = untrusted_text.partition("-")
    ports = rest.split(".")
    return (
        bool(dash)
        and len(untrusted_text) <= BUS_ID_LIMIT
        and len(ports) <= _PORT_DEPTH
        and all(map(_is_number, [bus, *ports]))
    )


class BusId(str):
    """A whole USB device as sysfs names it: bus, `-`, and the ports to it joined with dots."""

    __slots__ = ()

    def __new__(cls, untrusted_text: str) -> BusId:
        """Take a bus id such as `2-1` or `1-1.4.2`; RequestError for anything else."""
        if _is_bus_id(untrusted_text):
            return super().__new__(cls, untrusted_text)
        shown = printable(untrusted_text.encode(errors="replace"), 40)
        untrusted_whole, colon, _ = untrusted_text.partition(":")
        if colon and _is_bus_id(untrusted_whole):
            raise RequestError("UP-201", text=shown, device=untrusted_whole)
        if untrusted_text.startswith("usb") and _is_number(untrusted_text[3:] or "0"):
            raise RequestError("UP-202", text=shown)
        raise RequestError("UP-203", text=shown)


class VendorProduct(str):
    """A device by what it says it is: `0xVVVV.0xPPPP`, as it was given (policy compares text)."""

    __slots__ = ()

    def __new__(cls, untrusted_text: str) -> VendorProduct:
        """Take `0xVVVV.0xPPPP`; RequestError for anything else."""
        numbers = untrusted_text.split(".")
        if len(numbers) == 2 and all(
            len(number) == 6 and number.startswith("0x") and _HEX.issuperset(number[2:])
            for number in numbers
        ):
            return super().__new__(cls, untrusted_text)
        shown = printable(untrusted_text.encode(errors="replace"), 40)
        raise RequestError("UP-204", text=shown)

    @property
    def vendor(self) -> str:
        """Four lower-case hexadecimal digits, as sysfs' idVendor."""
        return self[2:6].lower()

    @property
    def product(self) -> str:
        """Four lower-case hexadecimal digits, as sysfs' idProduct."""
        return self[9:13].lower()


Target = BusId | VendorProduct
"""What a service argument names."""


def parse_target(untrusted_text: str) -> Target:
    """A service argument in either form; RequestError for anything else."""
    if untrusted_text.startswith("0x"):
        return VendorProduct(untrusted_text)
    return BusId(untrusted_text)


class Announcement(str):
    """What dom0 says that a device is: `VVVV:PPPP`, and each kind of interface as `CCSSPP`.

    Or `*` behind the product, for any interfaces.
    """

    __slots__ = ()

    def __new__(cls, untrusted_text: str) -> Announcement:
        """Take a line such as `046d:0825 0e0100 0e0200 010100`; RequestError for anything else."""
        untrusted_product, *untrusted_kinds = untrusted_text.split(" ")
        vendor, colon, product = untrusted_product.partition(":")
        if (
            (len(vendor), colon, len(product)) == (4, ":", 4)
            and _LOWER_HEX.issuperset(vendor + product)
            and (untrusted_kinds == ["*"] or 0 < len(untrusted_kinds) <= INTERFACES_LIMIT)
            and (
                untrusted_kinds == ["*"]
                or all(len(k) == 6 and _LOWER_HEX.issuperset(k) for k in untrusted_kinds)
            )
        ):
            return super().__new__(cls, untrusted_text)
        shown = printable(untrusted_text.encode(errors="replace"), 60)
        raise RequestError("UP-229", text=shown)

    @property
    def product(self) -> str:
        """Vendor and product, `VVVV:PPPP` in lower case, as sysfs has them."""
        return self[:9]

    def covers(self, kinds: set[str]) -> bool:
        """Whether an interface that is all of these was announced."""
        announced = self[10:].split(" ")
        return announced == ["*"] or kinds.issubset(announced)


class Attachment(str):
    """A device of a backend that is attached to this frontend, `BACKEND-DEVICE`."""

    __slots__ = ()

    def __new__(cls, untrusted_text: str) -> Attachment:
        """Take `sys-usb-2-1` or `sys-usb-0x46f4.0x0001`; RequestError for anything else."""
        untrusted = super().__new__(cls, untrusted_text)
        DomainName(untrusted.backend)
        parse_target(untrusted.device)
        return untrusted

    @property
    def backend(self) -> str:
        """The qube that has the device."""
        return self[: -len(self.device) - 1]

    @property
    def device(self) -> str:
        """What the backend was asked for: a bus id has a dash itself."""
        *_, bus, rest = ["", *self.split("-")]
        return rest if rest.startswith("0x") else f"{bus}-{rest}"


class DomainName(str):
    """The name of a qube."""

    __slots__ = ()

    def __new__(cls, untrusted_text: str) -> DomainName:
        """Take a qube's name, also that of a stub domain; RequestError for anything else."""
        limit = DOMAIN_NAME_LIMIT
        if untrusted_text.endswith(STUB_DOMAIN_SUFFIX):
            limit += len(STUB_DOMAIN_SUFFIX)
        if (
            0 < len(untrusted_text) <= limit
            and untrusted_text[0] in _LETTERS
            and _NAME.issuperset(untrusted_text)
        ):
            return super().__new__(cls, untrusted_text)
        shown = printable(untrusted_text.encode(errors="replace"), 40)
        raise RequestError("UP-205", text=shown)

    @property
    def owner(self) -> str:
        """The qube itself: a stub domain `NAME-dm` acts for `NAME`."""
        return self.removesuffix(STUB_DOMAIN_SUFFIX)


def qubesdb_key(bus_id: BusId) -> str:
    """Where a device stands in QubesDB; a dot cannot be part of a key, so it is `_`."""
    return f"{QUBESDB}/" + bus_id.replace(".", "_")
