# SPDX-License-Identifier: GPL-2.0-or-later
"""qubes.USBDetach: in a frontend `BACKEND DEVICE` on stdin, in a backend `DEVICE`."""

from __future__ import annotations

from usb_proxy import leftovers, qrexec, runstate, usbip_host
from usb_proxy.errors import NoDeviceError, NotAttachedError, RequestError
from usb_proxy.idents import BusId, DomainName, parse_target
from usb_proxy.sysfs import UsbDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host


def main(_arguments: Sequence[str], host: Host) -> int:
    """Return once the device is gone from this frontend, or back with this backend."""
    untrusted_fields = qrexec.read_request(host)
    if len(untrusted_fields) == 2:
        backend = DomainName.parse(untrusted_fields[0])
        target = parse_target(untrusted_fields[1])
        qrexec.require_root(host)
        _detach_here(host, backend, runstate.attachment_name(backend, target))
    elif len(untrusted_fields) == 1:
        bus_id = BusId.parse(untrusted_fields[0])
        qrexec.require_root(host)
        _take_back(host, bus_id)
    else:
        raise RequestError("UP-218")
    return 0


def _detach_here(host: Host, backend: DomainName, attachment: str) -> None:
    """End an attachment of this frontend, or what is left of it."""
    lock = runstate.import_lock(host, attachment)
    found = _stop(host, lock)
    if lock.acquire(0):
        with lock:
            found |= leftovers.remove_import(host, attachment, lock)
    if not found:
        device = attachment.removeprefix(f"{backend}-")
        raise NotAttachedError("UP-501", device=device, backend=backend)


def _take_back(host: Host, bus_id: BusId) -> None:
    """End the export of a device of this backend, whoever runs it, or what is left of it."""
    lock = runstate.export_lock(host, bus_id)
    found = _stop(host, lock)
    if lock.acquire(0):
        with lock:
            if lock.leftover or _is_held(host, bus_id):
                leftovers.end_export(host, bus_id, lock)
                found = True
    if not found:
        raise NotAttachedError("UP-502", device=bus_id)


def _is_held(host: Host, bus_id: BusId) -> bool:
    try:
        with UsbDevice(host, bus_id) as device:
            return usbip_host.is_held(device)
    except NoDeviceError:
        return False


def _stop(host: Host, lock: runstate.Lock) -> bool:
    """End the process that holds a lock: False if there is none."""
    holder = lock.stop_holder()
    if holder is None:
        return False
    leftovers.require_end(host, [holder])
    return True
