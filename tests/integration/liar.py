#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0-or-later
"""A backend's service that speaks USB/IP for a device that is not there: runs in a guest.

`/run/liar` is a list of what it says it is, in JSON; from the first to the next it changes when
it is asked anew after it was configured, as it is after each reset. Each is
`{"device": [FIRST, SECOND], "configurations": [[FIRST, SECOND], ...]}`, in hexadecimal: the
kernel asks for each descriptor twice, first for a part of it. `"strings"` has its string
descriptors, in hexadecimal, the first of which lists languages.
Its keyboards press a key at once; `"stalls": true` refuses whatever a stick is asked, which makes
the driver reset it; `"is_mute": true` leaves what a driver asks for unanswered.
The numbers are those of Documentation/usb/usbip_protocol.rst.
"""

import _socket
import json
import os
import signal
import struct
import sys

UNLINK, RET_SUBMIT, RET_UNLINK = 2, 3, 4
HEADER = 48
EPIPE, ECONNRESET = -32, -104
DEVICE, CONFIGURATION, STRING, REPORT = 1, 2, 3, 0x22
DEVICE_SIZE, CONFIGURATION_SIZE = 18, 9
CLASS = 0x20
IN, GET_DESCRIPTOR, SET_CONFIGURATION = 0x80, 6, 9
KEYS = bytes.fromhex(
    # A boot keyboard's report descriptor, HID 1.11, appendix E.6.
    "05010906a101050719e029e71500250175019508810295017508810195057501050819012905"
    "910295017503910195067508150025650507190029658100c0"
)
PRESS = bytes((0, 0, 4, 0, 0, 0, 0, 0))
"""`a`."""

readings = json.loads(open("/run/liar").read())  # noqa: SIM115 (a program without site)
link = _socket.socket(fileno=os.dup(0))


def receive(size: int) -> bytes:
    """Exactly so many bytes; the end of this program when there are no more."""
    data = b""
    while len(data) < size:
        more = link.recv(size - len(data))
        if not more:
            sys.exit(0)
        data += more
    return data


def answer(command: int, number: int, status: int, length: int = 0, data: bytes = b"") -> None:
    """Send a reply."""
    head = struct.pack(">5Iii", command, number, 0, 0, 0, status, length)
    link.sendall(head.ljust(HEADER, b"\0") + data)


class Device:
    """What it is now."""

    def __init__(self) -> None:
        self.become()

    def become(self) -> None:
        """Be the next of the readings."""
        self.reading = readings.pop(0)
        self.is_configured = False
        self.has_pressed = False

    def answer(self, number: int, head: bytes) -> None:
        """Answer a request, or leave it without an answer: it has nothing to say, yet."""
        endpoint, length = head[19], int.from_bytes(head[24:28], "big")
        if endpoint == 0:
            if head[40] & CLASS and self.reading.get("is_mute"):
                return
            data = self._control(head[40:48], length)
            if data is None:
                answer(RET_SUBMIT, number, EPIPE)
            else:
                answer(RET_SUBMIT, number, 0, len(data) if head[15] else length, data)
        elif self.reading.get("stalls"):
            answer(RET_SUBMIT, number, EPIPE)
        elif length == len(PRESS) and not self.has_pressed:
            self.has_pressed = True
            answer(RET_SUBMIT, number, 0, length, PRESS)

    def _control(self, setup: bytes, length: int) -> "bytes | None":
        """What to say to a control request; None refuses it."""
        kind, asked, index, what = setup[:4]
        if kind < IN:
            self.is_configured |= (kind, asked) == (0, SET_CONFIGURATION)
            return b""
        if asked != GET_DESCRIPTOR:
            return None
        if what == DEVICE and self.is_configured and readings:
            self.become()
        if what == REPORT:
            return KEYS[:length]
        if what == STRING:
            strings = self.reading.get("strings", [])
            return bytes.fromhex(strings[index])[:length] if index < len(strings) else None
        told = {DEVICE: [self.reading["device"]], CONFIGURATION: self.reading["configurations"]}
        if index >= len(told.get(what, [])):
            return None
        first, second = told[what][index]
        is_first = length != DEVICE_SIZE if what == DEVICE else length <= CONFIGURATION_SIZE
        return bytes.fromhex(first if is_first else second)[:length]


def main() -> None:
    """Serve until the other side lets go."""
    os.kill(int(os.environ["QREXEC_AGENT_PID"]), signal.SIGUSR1)
    link.sendall(b"131074 480\n")
    device = Device()
    while True:
        head = receive(HEADER)
        command, number, _, is_in = struct.unpack(">4I", head[:16])
        if command == UNLINK:
            answer(RET_UNLINK, number, ECONNRESET)
            continue
        if not is_in:
            receive(int.from_bytes(head[24:28], "big"))
        device.answer(number, head)


try:
    main()
except OSError:
    pass  # The other side has closed: the end of every lie.
