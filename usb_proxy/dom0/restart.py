# SPDX-License-Identifier: GPL-2.0-or-later
"""What qubesd finds when it starts beside qubes that run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usb_proxy.dom0.assignments import assigned
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
    free = {name: seen.device_id for name, seen in known.items() if not seen.frontend}
    for name, device_id in free.items():
        device = VirtualDevice(Port(backend, name, DEVICE_CLASS), device_id)
        for vm in local_qubes(backend.app) if wishes.free(device.port) else ():
            try:
                is_side = vm.klass == "AdminVM" or vm == backend
                if not is_side and assigned(vm, device) and vm.is_running():
                    text = sentence("UP-948", port=device.port, qube=vm.name)
                    vm.log.warning("%s", text)
            except Exception as error:  # of one qube only, such as libvirt's
                vm.log.warning("%s", sentence("UP-923", qube=vm.name, reason=error))
