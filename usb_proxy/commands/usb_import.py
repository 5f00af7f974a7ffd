# SPDX-License-Identifier: GPL-2.0-or-later
"""usb-import STATEFILE [REPORT-FD [ANNOUNCED]]: the frontend's end of a `qubes.USB` call.

It lives as long as the device is attached. To REPORT-FD it writes one byte, an exit
code: 0 when the device can be used, else with the reason after it. Without that FD the reason
goes to standard error. ANNOUNCED is what the device has to be, an `idents.Announcement`.
"""

from __future__ import annotations

from usb_proxy import endings, handshake, journal, locks, qrexec, suspend
from usb_proxy.errors import (
    PeerError,
    RequestError,
    SystemLackError,
    UsbProxyError,
    account,
)
from usb_proxy.frontend import gates, imports, records, vhci
from usb_proxy.frontend.arrival import Judge
from usb_proxy.frontend.enumeration import Enumeration
from usb_proxy.idents import Announcement, Attachment
from usb_proxy.uevents import Uevents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.frontend.vhci import Port
    from usb_proxy.host import Host

LINE_SECONDS = 30.0
"""The backend may load modules, wait for the device's last user, and reset the device."""

ATTACH_SECONDS = 92.0
"""From the start until the device is bound. What was waited for before leaves less for that, but
still 20 s."""

RETURN_SECONDS = 10.0
"""In which a device is back that the kernel sets up anew, since it has changed when it was reset.
One that was removed in this qube is not (drivers/usb/core/hub.c, usb_remove_device): that is what
`udisksctl power-off` does, and "safely remove" of a desktop."""


class Report:
    """The pipe to whoever asked for the device, and waits until `limit`; closed, it is nothing.

    `announced` is what they say that the device is, if they say so.
    """

    def __init__(
        self, host: Host, fd: int | None, limit: float, announced: Announcement | None = None
    ) -> None:
        self._host = host
        self.fd = fd
        self.limit = limit
        self.announced = announced

    def send(self, message: bytes) -> None:
        """Write the one message, and close; PeerError when nobody is left to read it."""
        fd, self.fd = self.fd, None
        if fd is None:
            return
        try:
            self._host.write_open(fd, message)
        except BrokenPipeError:
            raise PeerError("UP-611") from None
        finally:
            self._host.close_all(fd)


def main(arguments: Sequence[str], host: Host) -> int:
    """Plug the device of the connection on stdin into a free port, and wait for its end."""
    if len(arguments) not in (2, 3, 4):
        raise RequestError("UP-220")
    began = suspend.now()
    attachment = records.parse(arguments[1])
    entry = journal.Entry(host, attachment.device, attachment.backend, is_import=True)
    fd = _report_fd(host, arguments[2]) if len(arguments) > 2 else None
    announced = Announcement(arguments[3]) if len(arguments) == 4 else None
    report = Report(host, fd, host.now() + ATTACH_SECONDS, announced)
    try:
        qrexec.require_root(host, "qubes.USBAttach")
        link = qrexec.Link(host)
        lock = locks.import_lock(host, attachment)
        imports.acquire(host, lock)
        with lock:
            suspend.check(host, began)
            if lock.leftover:
                imports.remove(host, attachment, lock)
            _import(host, lock, link, report, entry)
    except Exception as error:
        if isinstance(error, UsbProxyError | OSError | MemoryError):
            entry.failed(error)
        if report.fd is None:
            raise
        code, told = account(error)
        report.send(bytes([code]) + told.encode("ascii", "replace"))
        return code
    return 0


def _import(
    host: Host, lock: locks.Lock, link: qrexec.Link, report: Report, entry: journal.Entry
) -> None:
    """Attach, report, and return when the device has gone from this qube."""
    attachment = Attachment(lock.name.removeprefix(locks.IMPORT))
    offer = handshake.decode(link.read_line(host.now() + LINE_SECONDS, report.fd))
    link.use_both_ways()
    judge = Judge(host, report.announced, entry)

    def note(port: Port, state: str = "") -> None:
        lock.note(imports.note(port.number, offer.devid, state))

    def prepare(port: Port) -> None:
        note(port)
        judge.expect(port)

    with Uevents() as events:
        place: tuple[Port, str] | None = None
        try:
            place = vhci.attach(host, host.link, offer, events, prepare)
            lock.tell(str(place[0].number))
            records.write(host, attachment, place[0].number)
            setting_up = Enumeration(host, events, place[1], link, report.fd)
            setting_up.await_usable(report.limit, judge.judge, judge.product)
            note(place[0], endings.ATTACHED)
            link.require()  # It may have been pulled while nothing was waited for any more.
            report.send(judge.verdict())
            entry.product = vhci.product(host, place[1])
            entry.attached(place[0].number)
            why = _stay(host, link, judge, events, place[1])
        finally:
            if place is not None:
                try:
                    note(place[0], endings.ENDING)
                finally:
                    _unplug(host, attachment, *place, link)
            judge.forget()  # Only now: what could not be taken out gets no driver, either.
            lock.note("")
    entry.detached(endings.why_stopped(host) or why)


def _stay(host: Host, link: qrexec.Link, judge: Judge, events: Uevents, path: str) -> str:
    """Sleep until the connection ends, or the device has been removed in this qube: which it was.

    When the device itself changes, judge what it became.
    """
    from usb_proxy import catalogue  # noqa: F401, PLC0415 (an upgrade may replace it)

    events.hear_only(f"remove@{path}", *[f"add@{path}/"] * judge.is_needed)
    is_over, deadline = False, None
    while not is_over:
        # Its files go before that is announced, and its folder after (drivers/base/core.c).
        if host.exists(f"/sys{path}/busnum"):
            deadline = None
            judge.judge_again(
                path, link.has_ended
            )  # The first time what it became while its drivers were awaited.
        elif deadline is None:
            deadline = host.now() + RETURN_SECONDS
        elif host.now() >= deadline:
            return journal.REMOVED
        is_over = link.await_end(events.fileno(), deadline)
        events.pending()
    return journal.DETACHED_THERE


def _unplug(host: Host, attachment: Attachment, port: Port, path: str, link: qrexec.Link) -> None:
    """End the connection, wait until the device has gone from this qube, and remove its record."""
    deadline = host.now() + imports.REMOVAL_SECONDS
    link.end(deadline)
    gone = vhci.await_removal(host, path, deadline)
    records.remove(host, attachment)
    gates.tidy(host)
    if not gone:
        raise SystemLackError("UP-714", attachment=attachment, port=port.number)


def _report_fd(host: Host, untrusted_number: str) -> int:
    if untrusted_number.isascii() and untrusted_number.isdigit() and len(untrusted_number) < 5:
        fd = int(untrusted_number)
        try:
            if fd > 2:
                host.inherit(fd, False)
                return fd
        except OSError:
            pass
    raise RequestError("UP-222")
