# SPDX-License-Identifier: GPL-2.0-or-later
"""What qubesd finds when it starts beside qubes that run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usb_proxy.dom0 import kinds
from usb_proxy.dom0.assignments import assigned, assignments
from usb_proxy.dom0.device import DEVICE_CLASS
from usb_proxy.dom0.qubesd import Port, VirtualDevice, local_qubes
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usb_proxy.dom0.ledger import Seen
    from usb_proxy.dom0.qubesd import Qube
    from usb_proxy.dom0.wishes import Wishes


def tell(backend: Qube, known: Mapping[str, Seen], wishes: Wishes) -> None:
    """Name the free devices that are assigned: nobody knows whether the user has let go of them."""
    ports = {name: Port(backend, name, DEVICE_CLASS) for name in known}
    free = [
        VirtualDevice(ports[name], seen.device_id)
        for name, seen in known.items()
        if not seen.frontend and wishes.free(ports[name])
    ]
    for vm in local_qubes(backend.app) if free else ():
        try:
            if vm.klass == "AdminVM" or vm == backend:
                continue
            if not (any(assignments(vm)) or kinds.has_patterns(vm)):
                continue
            found = [device.port for device in free if assigned(vm, device)]
            for port in found if found and vm.is_running() else ():
                vm.log.warning("%s", sentence("UP-948", port=port, qube=vm.name))
        except Exception as error:  # of one qube only, such as libvirt's
            vm.log.warning("%s", sentence("UP-923", qube=vm.name, reason=error))
