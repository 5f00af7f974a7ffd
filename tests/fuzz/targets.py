# SPDX-License-Identifier: GPL-2.0-or-later
"""One function for each parser: it takes any bytes, and raises if its property does not hold.

Nothing may be raised but the errors that a user reads, and what those say has to be short
printable ASCII; the docstring tells what else holds.
"""

from __future__ import annotations

import copy
import errno
import os
import re
import socket
import string
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from usb_proxy import handshake, locks, sysfs
from usb_proxy.backend import udev
from usb_proxy.commands import usb_attach
from usb_proxy.errors import (
    ExitCode,
    NoDeviceError,
    PeerError,
    RequestError,
    SystemLackError,
    UsbProxyError,
    printable,
)
from usb_proxy.frontend import descriptors, imports, records, vhci
from usb_proxy.host import Host
from usb_proxy.idents import (
    Announcement,
    Attachment,
    BusId,
    DomainName,
    VendorProduct,
    parse_target,
    qubesdb_key,
)
from usb_proxy.kernel import SPEEDS
from usb_proxy.qrexec import REQUEST_LIMIT, Link, read_lines
from usb_proxy.uevents import LOST, UDEV, Uevents

MESSAGE_LIMIT = 1500
EXIT_CODES = {code for name, code in vars(ExitCode).items() if name.isupper() and code}


class Broken(Exception):
    """A property does not hold."""


def require(holds: object, *seen: object) -> None:
    """Not `assert`, which an option of Python turns off."""
    if not holds:
        raise Broken(*seen)


@contextmanager
def only(*allowed: type[UsbProxyError]) -> Iterator[None]:
    """Let errors of these kinds pass, if a user may read what they say."""
    try:
        yield
    except allowed as error:
        require(re.fullmatch(rf"[ -~]{{1,{MESSAGE_LIMIT}}}", str(error)), error)


class Shelf(Host):
    """A machine whose small files all say the same."""

    def __init__(self, data: bytes = b"") -> None:
        super().__init__("", {})
        self._text = data.decode("ascii", "replace")

    def read(self, path: str, directory: int | None = None) -> str:
        if path.endswith(".1"):  # vhci-hcd's second controller
            raise FileNotFoundError
        return self._text


def at_line(data: bytes) -> None:
    """An offer that survives being sent again, or an error of the peer."""
    with only(PeerError):
        offer = handshake.decode(data)
        speed = next(text for text, number in SPEEDS.items() if number == offer.speed)
        again = handshake.decode(handshake.encode(offer.devid, speed))
        require((again.devid, again.speed) == (offer.devid, offer.speed), data)
        require(2**16 < offer.devid < 2**32, offer.devid)


def _name(parse: Callable[[str], str], allowed: str) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        """A name that is the text itself, of allowed characters and bounded, or a refusal."""
        text = os.fsdecode(data)
        with only(RequestError):
            name = parse(text)
            require(name == text == parse(name), text)
            require(set(name) <= set(allowed) and len(name) <= 34, name)

    return target


def at_key(data: bytes) -> None:
    """A key that stands for one device alone."""
    with only(RequestError):
        bus_id = BusId(os.fsdecode(data))
        key = qubesdb_key(bus_id).removeprefix("/qubes-usb-devices/")
        require(set(key) <= set(string.digits + "-_"), key)
        require(BusId(key.replace("_", ".")) == bus_id, key)


def at_request(data: bytes) -> None:
    """The words of the first line, however it is cut into pieces, or a refusal.

    The first byte is the size of the pieces.
    """
    size, data = (data[0] % REQUEST_LIMIT or 1, data[1:2000]) if data else (1, b"")
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far, only(RequestError):
        far.setblocking(False)
        try:
            for start in range(0, len(data), size):
                far.send(data[start : start + size])
        except BlockingIOError:
            return
        far.close()
        fields = read_lines(Host(link=near.fileno()))[0].split()
        line = data.partition(b"\n")[0]
        require(fields == line.decode("ascii").split(), fields)
        require(sum(map(len, fields)) <= REQUEST_LIMIT, fields)


def at_link(data: bytes) -> None:
    """The first line, and the kernel gets all that follows it."""
    near, far = socket.socketpair()
    with near, far, only(PeerError):
        far.sendall(data[:4096])
        far.close()
        host = Host(link=near.fileno())
        line = Link(host).read_line(host.now() + 10)
        near.settimeout(0)
        require(line + near.recv(8192) == data[:4096], line)
        require(line.find(b"\n") == len(line) - 1 < handshake.LINE_LIMIT, line)


def at_ports(data: bytes) -> None:
    """Ports with plain numbers, or one sentence about the kernel."""
    with only(SystemLackError):
        for port in vhci.ports(Shelf(b"hub port sta spd dev\n" + data)):
            require(port.half in ("hs", "ss"), port.half)
            require(min(port.number, port.state, port.devid, port.index) >= 0, port.number)


class _Netlink:
    """The kernel's socket: each message has its sender's port and its text."""

    def __init__(self, data: bytes) -> None:
        self.messages = [(part[:1], part[1:]) for part in data.split(b"\n")]
        self.errors = data.count(b"\xff")

    def recvfrom(self, limit: int) -> tuple[bytes, tuple[int, int]]:
        if self.errors:
            self.errors -= 1
            raise OSError(errno.ENOBUFS, "lost")
        if not self.messages:
            raise BlockingIOError
        sender, text = self.messages.pop(0)
        return text[:limit], (0 if sender == b"k" else 77, 1)


def at_uevents(data: bytes) -> None:
    """The first text of each message of the kernel's, and of nobody else."""
    events = Uevents.__new__(Uevents)
    events._socket = _Netlink(data)  # type: ignore[assignment]
    told = events.pending()
    kernels = [part[1:] for part in data.split(b"\n") if part[:1] == b"k"]
    lost = data.count(b"\xff")
    require(told[:lost] == [LOST] * lost, told)
    expected = [text[:8192].partition(b"\0")[0].decode("ascii", "replace") for text in kernels]
    others = [part[1:] for part in data.split(b"\n") if part[:1] != b"k"]
    announced = [text for text in told[lost:] if text.startswith(UDEV)]
    most = sum(text.startswith(b"libudev\0") for text in others)
    require(len(announced) <= most + sum(text.startswith(UDEV) for text in expected), told)
    kept = [text for text in told[lost:] if not text.startswith(UDEV)]
    require(kept == [text for text in expected if not text.startswith(UDEV)], told)


def at_note(data: bytes) -> None:
    """The port and the device that were noted, or nothing."""
    note = data[: locks.NOTE_LIMIT].decode("ascii", "replace")
    found = imports._parse_note(note)
    require(found is None or imports.note(*found).split() == _plain(note)[:2], found)
    require(found is None or min(found) >= 0, found)


def _plain(note: str) -> list[str]:
    return [number.lstrip("0") or "0" for number in note.split(" ")]


def at_record(data: bytes) -> None:
    """A small number, or nothing."""
    port = records.read(Shelf(data), Attachment("sys-usb-2-1"))
    require(port is None or 0 <= port < 10**5, port)
    require(port is None or str(port).encode() in data, port)


def at_state_file(data: bytes) -> None:
    """The attachment whose record this is, and no other file of the folder."""
    with only(RequestError):
        attachment = records.parse(os.fsdecode(data))
        require("/" not in attachment, attachment)
        require(f"{attachment.backend}-{attachment.device}" == attachment, attachment)
        require(records.path_of(attachment) == os.fsdecode(data), attachment)


def _make_device() -> sysfs.UsbDevice:
    """One whose folder has gone since."""
    with tempfile.TemporaryDirectory() as root:
        os.makedirs(f"{root}/sys/bus/usb/devices/2-1")
        return sysfs.UsbDevice(Host(root, {}), BusId("2-1"))


_DEVICE = _make_device()


def _device(data: bytes) -> sysfs.UsbDevice:
    """A device all of whose files say the same, and that has not been asked for anything yet."""
    device = copy.copy(_DEVICE)
    device._host = Shelf(data)
    return device


def at_attributes(data: bytes) -> None:
    """Numbers that can be sent to the other kernel, or one sentence about the device."""
    device = _device(data)
    with only(NoDeviceError):
        require(device.matches(VendorProduct("0x1234.0x5678")) in (True, False))
        require(device.refusal() is None or "is a hub" in str(device.refusal()))
        require(device.number("usbip_status") >= 0)
        require(device.devid() >= 0, device.devid())
        require(re.fullmatch(r"[ -~]{,140}", device.identity()), device.identity())


def at_property(data: bytes) -> None:
    """The rest of the line that names the property, and no other's."""
    device = _device(data)
    properties = udev.properties(device._host, device)
    value = None if properties is None else properties.get("QUBES_USB_RESET")
    lines = data.decode("ascii", "replace").splitlines()
    require(value is None or f"E:QUBES_USB_RESET={value}" in lines, value)


def at_printable(data: bytes) -> None:
    """One line of printable ASCII, as long as is wanted."""
    limit = 3 + len(data) % 700
    shown = printable(data, limit)
    require(re.fullmatch(r"[ -~]*", shown) and len(shown) <= limit, shown)
    require(shown == shown.strip() and printable(shown.encode(), limit) == shown, shown)


def at_report(data: bytes) -> None:
    """The one byte that means success, or a sentence with an exit code of ours.

    The first byte is the exit code of the call; what follows NUL NUL is its standard error.
    """
    code, data = (data[0], data[1:]) if data else (None, b"")
    said, _, errors = data.partition(b"\0\0")
    host = Host()
    pipes = []
    for text in (said, errors):
        reader, writer = os.pipe()
        os.write(writer, text[:60000])
        os.close(writer)
        pipes.append(reader)
    try:
        heard = usb_attach._listen(host, pipes[0], pipes[1], host.now() + 1)
    finally:
        for reader in pipes:
            os.close(reader)
    require(max(map(len, heard)) <= usb_attach.OUTPUT_LIMIT, heard)
    if heard[0] != usb_attach.ATTACHED:
        failure = usb_attach._failure(DomainName("sys-usb"), BusId("2-1"), code, *heard)
        require(failure.code in EXIT_CODES, failure.code)
        with only(UsbProxyError):
            raise failure


def at_announcement(data: bytes) -> None:
    """What was announced, and it covers nothing else; or a refusal."""
    text = data.decode("ascii", "replace")
    with only(RequestError):
        announced = Announcement(text)
        require(re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}( \*|( [0-9a-f]{6}){1,32})", text), text)
        product, *kinds = text.split()
        require(announced.product == product, announced.product)
        require(kinds == ["*"] or all(announced.covers({kind}) for kind in kinds), kinds)
        require(kinds == ["*"] or not announced.covers({kinds[0], "xxxxxx"}), kinds)


def at_descriptors(data: bytes) -> None:
    """No interface that the kernel has is missing in what is judged, in none of its settings.

    The first byte is the configuration that it has chosen, the second the length that the device's
    own descriptor tells; then come configurations, FF FF between them, their value first.
    """
    (value, length), told = (data[:2], data[2:]) if len(data) > 1 else (b"\1\x12", b"")
    shown, expected = b"", None
    parts = told.split(b"\xff\xff")[:8]
    for part in parts:
        its_value, body, at = (part or b"\1")[0], part[1:], 0
        kinds: dict[int, set[str]] = {}
        while at + 2 <= len(body) and 2 <= body[at] <= len(body) - at:
            one = body[at : at + body[at]]
            if one[1] == 4 and len(one) >= 9:
                kinds.setdefault(one[2], set()).add(one[5:8].hex())
            at += len(one)
        shown += bytes([9, 2, 0, 0, len(kinds), its_value, 0, 0x80, 50]) + body[:at]
        if its_value == value and expected is None:
            expected = kinds
    itself = bytes([length, 1, *bytes(15), len(parts)])
    found = descriptors.interfaces(itself + shown, value)
    for number, each in (expected or {}).items():
        require(each <= found.get(number, set()), number, each, found)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "line": at_line,
    "bus_id": _name(BusId, string.digits + "-."),
    "vendor_product": _name(VendorProduct, string.hexdigits + "x."),
    "target": _name(parse_target, string.hexdigits + "x-."),
    "domain": _name(DomainName, string.ascii_letters + string.digits + "_.-"),
    "key": at_key,
    "announcement": at_announcement,
    "descriptors": at_descriptors,
    "request": at_request,
    "link": at_link,
    "ports": at_ports,
    "uevents": at_uevents,
    "note": at_note,
    "record": at_record,
    "state_file": at_state_file,
    "attributes": at_attributes,
    "property": at_property,
    "printable": at_printable,
    "report": at_report,
}
