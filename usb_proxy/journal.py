# SPDX-License-Identifier: GPL-2.0-or-later
"""What the journal of this qube is told of each attachment: who, what, how long, why it ended.

In systemd's own protocol, one datagram of NAME=VALUE lines (systemd, JOURNAL_NATIVE_PROTOCOL.md).
Where no journal listens, or is too slow, an entry is lost; that is no failure.
"""

from __future__ import annotations

from usb_proxy import sockets
from usb_proxy.errors import UsbProxyError, history, in_words, lack, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "qubes-usb-proxy"

ATTACHED = "1855b76253884d2689e6e568cbb37ff5"
DETACHED = "399dbe57c8bc4740b4a19ead2a600d9d"
FAILED = "09c80de5fa1447dc8cf075fee15498a5"

DETACHED_HERE = "detached here"
DETACHED_THERE = "detached there"
UNPLUGGED = "unplugged"
REMOVED = "removed here"
STOPPED = "stopped by a signal"
DIED = "repaired after a death"
BROKEN = "failed"

_INFO, _WARNING = 6, 4
"""Priorities, syslog(3)."""


class Entry:
    """One attachment, seen from this qube: `is_import` if its device is plugged in at the `peer`.

    `product` is `VVVV:PPPP`, once it is known.
    """

    def __init__(self, host: Host, device: str, peer: str, is_import: bool) -> None:
        self._host = host
        self._began: float | None = None
        self.device = device
        self.peer = peer
        self.is_import = is_import
        self.product = ""

    def attached(self, port: int | None = None) -> None:
        """It can be used there now, or here, at a `port` of vhci-hcd."""
        self._began = self._host.now()
        if port is None:
            self._send(ATTACHED, _INFO, "is attached to", "", {})
        else:
            self._send(ATTACHED, _INFO, "is attached to", f" at port {port}", {"PORT": str(port)})

    def detached(self, why: str, seconds: float | None = None) -> None:
        """It is attached no more; after so many seconds, or since `attached` was told of."""
        self._end(_WARNING if why == DIED else _INFO, why, why, seconds)

    def failed(self, error: UsbProxyError | OSError | MemoryError) -> None:
        """It was not attached, or its end was not as it should be."""
        told = [each for each in history(error) if isinstance(each, UsbProxyError)]
        if not told and (failure := lack(error)):
            told = [failure]
        if not told:
            return  # A defect, which is told where it is seen.
        if self._began is None:
            more = {"REASON": BROKEN, "ERROR": told[0].id}
            self._send(FAILED, _WARNING, "was not attached to", f": {_in_full(told)}", more)
        else:
            self._end(_WARNING, BROKEN, _in_full(told), None, told[0].id)

    def failed_after(self, error: UsbProxyError, seconds: float | None) -> None:
        """Its end was not as it should be; after so many seconds, or since `attached`."""
        self._end(_WARNING, BROKEN, _in_full([error]), seconds, error.id)

    def warned(self, error: UsbProxyError) -> None:
        """Something about it went wrong, and does no harm to it."""
        self._send("", _WARNING, "has a warning in", f": {error}", {"ERROR": error.id})

    def _end(
        self, priority: int, why: str, told: str, seconds: float | None, error: str = ""
    ) -> None:
        more = {"REASON": why, "ERROR": error}
        lasted = ""
        if seconds is None and self._began is not None:
            seconds = self._host.now() - self._began
        if seconds is not None:
            more["SECONDS"] = f"{seconds:.0f}"
            lasted = f" after {seconds:.0f} s"
        self._send(DETACHED, priority, "was detached from", f"{lasted}: {told}", more)

    def _send(self, kind: str, priority: int, verb: str, rest: str, more: dict[str, str]) -> None:
        what = f"{self.device} ({self.product})" if self.product else self.device
        if self.is_import:
            sentence = f"{what} of {self.peer} {verb} this qube{rest}"
        else:
            sentence = f"{what} {verb} {self.peer}{rest}"
        fields = {
            "MESSAGE": f"USB device {sentence}",
            "MESSAGE_ID": kind,
            "PRIORITY": str(priority),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "USB_PROXY_ROLE": "importer" if self.is_import else "exporter",
            "USB_PROXY_DEVICE": self.device,
            "USB_PROXY_PRODUCT": self.product,
            "USB_PROXY_PEER": self.peer,
        } | {f"USB_PROXY_{name}": text for name, text in more.items()}
        # A value with a line's end would need another form, and could pretend to be a field.
        lines = [
            f"{name}={printable(text.encode('ascii', 'replace'), 800)}\n"
            for name, text in fields.items()
            if text
        ]
        try:
            sockets.send(self._host, SOCKET, "".join(lines).encode("ascii"))
        except OSError:
            pass  # Also where no more files can be opened: who told us of that has to go on.


def _in_full(errors: list[UsbProxyError]) -> str:
    """Sentences with what nobody but this journal is told."""
    return in_words(f"{error} ({error.aside})" if error.aside else error for error in errors)
