# SPDX-License-Identifier: GPL-2.0-or-later
"""Detaching one device on request, on either side, whether its process is alive or not."""

from __future__ import annotations

from usb_proxy import leftovers, runstate, usbip_host
from usb_proxy.errors import NoDeviceError, NotAttachedError
from usb_proxy.sysfs import UsbDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host
    from usb_proxy.idents import BusId, DomainName, Target


def here(host: Host, backend: DomainName, target: Target) -> None:
    """End an attachment of this frontend, or what is left of it; NotAttachedError without one."""
    attachment = runstate.attachment_name(backend, target)
    lock = runstate.import_lock(host, attachment)
    found = _stop(host, lock)
    if lock.acquire(0):
        with lock:
            found |= leftovers.remove_import(host, attachment, lock)
    if not found:
        raise NotAttachedError("UP-501", device=target, backend=backend)


def take_back(host: Host, bus_id: BusId) -> None:
    """End the export of a device of this backend, whoever runs it, or what is left of it.

    NotAttachedError when there is nothing of the kind.
    """
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
