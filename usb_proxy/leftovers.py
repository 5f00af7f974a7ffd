# SPDX-License-Identifier: GPL-2.0-or-later
"""How an attachment ends on either side, also for one whose process has died."""

from __future__ import annotations

import time

from usb_proxy import journal, qubesdb, runstate, usbip_host, vhci
from usb_proxy.errors import NoDeviceError, SystemLackError, UsbProxyError
from usb_proxy.host import signal
from usb_proxy.idents import BusId
from usb_proxy.sysfs import UsbDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from usb_proxy.host import Host

KEEP_UNBOUND = "/run/qubes-service/usb-proxy-keep-unbound"
"""With this qube service a device that was attached gets no driver until it is plugged again."""

REMOVAL_SECONDS = 15.0
"""A device that leaves while the kernel enumerates it holds its hub for 5 s."""

END_SECONDS = 30.0
"""How long a process may take to end its attachment: above all its own waits for the kernel."""


def require_end(host: Host, holders: Iterable[int]) -> None:
    """Sleep until processes that were told to end have ended, given as pidfds.

    SystemLackError if one has not after `END_SECONDS`.
    """
    deadline = host.now() + END_SECONDS
    ended = [runstate.await_end(host, holder, deadline) for holder in holders]
    if not all(ended):
        raise SystemLackError("UP-715")


def give_back(host: Host, device: UsbDevice) -> None:
    """Give a device back as this qube's services say; its export lock must be held."""
    usbip_host.give_back(host, device, host.exists(KEEP_UNBOUND))


def why_stopped(host: Host) -> str:
    """For the journal: why this process was told to end, or nothing if it was not.

    SIGTERM comes from whoever detaches in this qube, and when the qube shuts down.
    """
    if not host.stopped_by:
        return ""
    return journal.DETACHED_HERE if host.stopped_by == signal.SIGTERM else journal.STOPPED


def tell_of_death(host: Host, lock: runstate.Lock) -> None:
    """Tell the journal of the holder of a lock that has died, if there was one."""
    if not lock.leftover:
        return
    is_import = lock.name.startswith(runstate.IMPORT)
    seconds = None
    try:
        told, since = runstate.notice(host, lock.name)
        seconds = time.time() - since
    except FileNotFoundError:
        told = "a qube"  # It died at its very start.
    if is_import:
        peer, device = runstate.split_attachment(lock.name.removeprefix(runstate.IMPORT))
    else:
        peer, device = told, lock.name.removeprefix(runstate.EXPORT)
    journal.Attachment(host, device, peer, is_import).detached(journal.DIED, seconds)


def note_of_import(port: int, devid: int) -> str:
    """What an importer notes in its lock: the port, and which device is meant."""
    return f"{port} {devid}"


def remove_import(host: Host, attachment: str, lock: runstate.Lock) -> bool:
    """Detach what a dead importer left, and its record; False if there was nothing.

    `lock` is its lock, held.
    """
    number, devid = _parse_note(lock.leftover) or (runstate.read_record(host, attachment), None)
    port = None
    # A record may be old, and two backends may number their devices alike: so a living importer's
    # word about a port counts first.
    if number is not None and not _is_of_another(host, attachment, number):
        port = vhci.find(host, number, devid)
    if port is not None:
        path = vhci.device_path(host, port)
        vhci.detach(host, port)
        if not vhci.await_removal(host, path, host.now() + REMOVAL_SECONDS):
            raise SystemLackError("UP-714", attachment=attachment, port=port.number)
    had_record = host.exists(runstate.record_path(attachment))
    runstate.remove_record(host, attachment)
    tell_of_death(host, lock)
    lock.note("")
    return port is not None or had_record


def _parse_note(note: str) -> tuple[int, int] | None:
    """The port and the devid of what `note_of_import` gave; None for what it did not give."""
    numbers = note.split(" ")
    if len(numbers) != 2 or not all(n.isdigit() and len(n) <= 10 for n in numbers):
        return None
    return int(numbers[0]), int(numbers[1])


def _is_of_another(host: Host, attachment: str, number: int) -> bool:
    """Whether a living importer of another attachment has noted this port."""
    for name in runstate.lock_names(host, runstate.IMPORT):
        # Our own is held, and looking at it would give it up (fcntl(2)).
        if name != runstate.IMPORT + attachment:
            noted = _parse_note(runstate.Lock(host, name).holders_note() or "")
            if noted and noted[0] == number:
                return True
    return False


def repair(host: Host) -> None:
    """Clean up after every exporter and importer of this qube that has died.

    What fails keeps nothing else from being cleaned up; the first failure is raised at the end.
    """
    failures = []
    for name in runstate.lock_names(host):
        lock = runstate.Lock(host, name)
        if not lock.acquire(0):
            continue
        try:
            with lock:
                # Without a note it had done nothing yet.
                if lock.leftover and name.startswith(runstate.EXPORT):
                    end_export(host, BusId(name.removeprefix(runstate.EXPORT)), lock)
                elif lock.leftover:
                    remove_import(host, name.removeprefix(runstate.IMPORT), lock)
        except UsbProxyError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def end_export(host: Host, bus_id: BusId, lock: runstate.Lock) -> None:
    """Unpublish a device and give it back, as its exporter would; `lock` is its lock, held."""
    try:
        qubesdb.unpublish(host, bus_id)
    finally:
        try:
            with UsbDevice(host, bus_id) as device:
                give_back(host, device)
        except NoDeviceError:
            pass  # Unplugged: there is nothing to give back.
    tell_of_death(host, lock)
    lock.note("")
