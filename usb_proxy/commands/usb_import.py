# SPDX-License-Identifier: GPL-2.0-or-later
"""usb-import STATEFILE [REPORT-FD]: the frontend's end of a `qubes.USB` call.

It lives as long as the device is attached. To REPORT-FD it writes one byte, an exit
code: 0 when the device can be used, else with the reason after it. Without that FD the reason
goes to standard error.
"""

from __future__ import annotations

import posix as os
import select

from usb_proxy import handshake, journal, leftovers, qrexec, runstate, vhci
from usb_proxy.errors import (
    ExitCode,
    InUseError,
    PeerError,
    RequestError,
    SystemLackError,
    UsbProxyError,
    history,
    in_words,
)
from usb_proxy.uevents import LOST, Uevents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host
    from usb_proxy.vhci import Port

LOCK_SECONDS = 5.0
LINE_SECONDS = 30.0
"""The backend may load modules, wait for the device's last user, and reset the device."""

ENUMERATE_SECONDS = 15.0
"""A device needs 0.3-0.7 s. A silent one blocks its half of the controller while we wait."""

TURN_SECONDS = 30.0
"""All devices of a full hub; one that comes and goes must not hold us for ever."""


class Report:
    """The pipe to whoever asked for the device; closed, it is nothing."""

    def __init__(self, fd: int | None) -> None:
        self.fd = fd

    def send(self, message: bytes) -> None:
        """Write the one message, and close; PeerError when nobody is left to read it."""
        fd, self.fd = self.fd, None
        if fd is None:
            return
        try:
            os.write(fd, message)
        except BrokenPipeError:
            raise PeerError("UP-611") from None
        finally:
            os.close(fd)


def main(arguments: Sequence[str], host: Host) -> int:
    """Plug the device of the connection on stdin into a free port, and wait for its end."""
    if len(arguments) not in (2, 3):
        raise RequestError("UP-220")
    attachment = _attachment(arguments[1])
    backend, name = runstate.split_attachment(attachment)
    entry = journal.Attachment(host, name, backend, is_import=True)
    report = Report(_report_fd(arguments[2]) if len(arguments) == 3 else None)
    try:
        qrexec.require_root(host)
        link = qrexec.Link(host)
        lock = runstate.import_lock(host, attachment)
        if not lock.acquire(LOCK_SECONDS):
            raise InUseError("UP-403")
        with lock:
            if lock.leftover:
                leftovers.remove_import(host, attachment, lock)
            _import(host, lock, link, report, entry)
    except UsbProxyError as error:
        entry.failed(error)
        if report.fd is None:
            raise
        told = [e for e in history(error) if isinstance(e, UsbProxyError)]
        report.send(bytes([told[0].code]) + in_words(told).encode("ascii", "replace"))
        return told[0].code
    return 0


def _import(
    host: Host, lock: runstate.Lock, link: qrexec.Link, report: Report, entry: journal.Attachment
) -> None:
    """Attach, report, and return when the device has gone from this qube."""
    attachment = lock.name.removeprefix(runstate.IMPORT)
    offer = handshake.decode(link.read_line(host.now() + LINE_SECONDS, report.fd))
    link.use_both_ways()

    def note(port: Port) -> None:
        lock.note(leftovers.note_of_import(port.number, offer.devid))

    with Uevents() as events:
        place: tuple[Port, str] | None = None
        try:
            place = vhci.attach(host, host.link, offer, events, note)
            lock.tell(str(place[0].number))
            runstate.write_record(host, attachment, place[0].number)
            _await_device(host, events, place[1], link, report)
            events.close()
            report.send(bytes([ExitCode.OK]))
            entry.product = vhci.product(host, place[1])
            entry.attached(place[0].number)
            link.await_end()
        finally:
            if place is not None:
                _unplug(host, attachment, *place, link)
            lock.note("")
    entry.detached(leftovers.why_stopped(host) or journal.DETACHED_THERE)


def _await_device(
    host: Host, events: Uevents, path: str, link: qrexec.Link, report: Report
) -> None:
    """Return when the kernel has configured the device at DEVPATH `path` and bound its driver.

    It sets up one device of a hub after the other: while others come, there is hope.
    """
    hub = path.rpartition("/")[0] + "/"
    start = host.now()
    deadline = start + ENUMERATE_SECONDS
    waits = {events.fileno(): select.POLLIN, link.fileno(): select.POLLRDHUP}
    if report.fd is not None:
        waits[report.fd] = 0
    while True:
        ready = host.wait(waits, deadline)
        if events.fileno() in ready:
            pending = events.pending()
            if f"bind@{path}" in pending or (LOST in pending and host.exists(f"/sys{path}/driver")):
                return
            if any(f"@{hub}" in event and f"@{path}/" not in f"{event}/" for event in pending):
                deadline = min(host.now() + ENUMERATE_SECONDS, start + TURN_SECONDS)
        if link.fileno() in ready:
            raise PeerError("UP-615")
        if report.fd in ready:
            raise PeerError("UP-611")
        if not ready:
            raise PeerError("UP-616", seconds=deadline - start)


def _unplug(host: Host, attachment: str, port: Port, path: str, link: qrexec.Link) -> None:
    """End the connection, wait until the device has gone from this qube, and remove its record."""
    deadline = host.now() + leftovers.REMOVAL_SECONDS
    link.end(deadline)
    gone = vhci.await_removal(host, path, deadline)
    runstate.remove_record(host, attachment)
    if not gone:
        raise SystemLackError("UP-714", attachment=attachment, port=port.number)


def _attachment(untrusted_path: str) -> str:
    """The attachment that a record's path belongs to."""
    folder, _, name = untrusted_path.rpartition("/")
    prefix, suffix = runstate.RECORD_PREFIX, runstate.RECORD_SUFFIX
    if folder != runstate.RECORDS or not (name.startswith(prefix) and name.endswith(suffix)):
        raise RequestError("UP-221", path=runstate.record_path("BACKEND-DEVICE"))
    return name.removeprefix(prefix).removesuffix(suffix)


def _report_fd(untrusted_number: str) -> int:
    if untrusted_number.isascii() and untrusted_number.isdigit() and len(untrusted_number) < 5:
        fd = int(untrusted_number)
        try:
            if fd > 2:
                os.set_inheritable(fd, False)
                return fd
        except OSError:
            pass
    raise RequestError("UP-222")
