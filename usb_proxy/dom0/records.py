# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a backend's QubesDB. A qube that does not answer exposes nothing, and hurts nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usb_proxy.dom0 import untrusted
from usb_proxy.errors import sentence
from usb_proxy.idents import qubesdb_key

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Qube
    from usb_proxy.idents import BusId, DomainName


def ports(backend: Qube) -> list[BusId]:
    """The ports of a qube with a device in them; none if it does not run."""
    try:
        if backend.app.vmm.offline_mode or not backend.is_running():
            return []
        return untrusted.bus_ids(backend.untrusted_qdb.list(untrusted.ROOT + "/") or ())
    except Exception as error:  # libvirt's and QubesDB's, of a qube that is being killed
        backend.log.warning("%s", sentence("UP-922", qube=backend.name, reason=error))
        return []


def read(backend: Qube, port: BusId, entry: str) -> bytes | None:
    """One untrusted entry of a device, None if there is none."""
    try:
        if not backend.is_running():
            return None
        untrusted_value = backend.untrusted_qdb.read(f"{qubesdb_key(port)}/{entry}")
    except Exception as error:
        backend.log.warning("%s", sentence("UP-922", qube=backend.name, reason=error))
        return None
    return untrusted_value if isinstance(untrusted_value, bytes) else None


def frontend(backend: Qube, port: BusId) -> DomainName | None:
    """The qube that a device is said to be connected to; there may be no such qube."""
    return untrusted.frontend(read(backend, port, "connected-to"))
