# SPDX-License-Identifier: GPL-2.0-or-later
"""What an importer notes, and how its device is taken out, also after its death."""

from __future__ import annotations

from usb_proxy import endings, locks
from usb_proxy.errors import InUseError, NotAttachedError, SystemLackError
from usb_proxy.frontend import gates, records, vhci
from usb_proxy.idents import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host
    from usb_proxy.idents import DomainName, Target

REMOVAL_SECONDS = 15.0
"""A device that leaves while the kernel enumerates it holds its hub for 5 s."""


def note(port: int, devid: int, state: str = "") -> str:
    """What an importer notes in its lock: the port, which device is meant, and its own state."""
    return f"{port} {devid} {state}".rstrip()


def acquire(host: Host, lock: locks.Lock) -> None:
    """Take an importer's lock: at once, or when the one that is ending has ended.

    InUseError says what the living one does: it is attached, not done, or does not end.
    """
    if lock.acquire(endings.NEWS_SECONDS):
        return
    noted = locks.Lock(host, lock.name).holders_note()
    if noted is None or noted.endswith(endings.ENDING):
        if lock.acquire(REMOVAL_SECONDS):
            return
        raise InUseError("UP-420")
    if noted.endswith(endings.ATTACHED):
        raise InUseError("UP-403")
    raise InUseError("UP-421")


def remove(host: Host, attachment: Attachment, lock: locks.Lock) -> bool:
    """Detach what a dead importer left, and its record; False if there was nothing.

    `lock` is its lock, held.
    """
    endings.note_end(lock)
    number, devid = _parse_note(lock.leftover) or (records.read(host, attachment), None)
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
    gates.withdraw_all(host, attachment)
    had_record = records.read(host, attachment) is not None
    records.remove(host, attachment)
    endings.tell_of_death(host, lock)
    lock.note("")
    return port is not None or had_record


def _parse_note(note: str) -> tuple[int, int] | None:
    """The port and the devid of what `note` gave; None for what it did not give."""
    numbers = (
        note.removesuffix(f" {endings.ATTACHED}").removesuffix(f" {endings.ENDING}").split(" ")
    )
    if len(numbers) != 2 or not all(n.isdigit() and len(n) <= 10 for n in numbers):
        return None
    return int(numbers[0]), int(numbers[1])


def _is_of_another(host: Host, attachment: Attachment, number: int) -> bool:
    """Whether a living importer of another attachment has noted this port."""
    for name in locks.lock_names(host, locks.IMPORT):
        # Our own is held, and looking at it would give it up (fcntl(2)).
        if name != locks.IMPORT + attachment:
            noted = _parse_note(locks.Lock(host, name).holders_note() or "")
            if noted and noted[0] == number:
                return True
    return False


def detach(host: Host, backend: DomainName, target: Target) -> None:
    """End an attachment of this frontend, or what is left of it; NotAttachedError without one."""
    attachment = Attachment(f"{backend}-{target}")
    lock = locks.import_lock(host, attachment)
    found = endings.stop(host, lock)
    if lock.acquire(0):
        with lock:
            found |= remove(host, attachment, lock)
    if not found:
        raise NotAttachedError("UP-501", device=target, backend=backend)
