# SPDX-License-Identifier: GPL-2.0-or-later
"""What can never be attached: refused when it is asked for, and when it is assigned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from usb_proxy.dom0 import qubesd
from usb_proxy.dom0.qubesd import Port, QubesException, QubesValueError
from usb_proxy.errors import RequestError, sentence
from usb_proxy.idents import BusId

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Qube


class AlreadyAttached(qubesd.DeviceAlreadyAttached):
    """With another name, and the text as it is.

    A KeyError prints as a quoted repr; the client makes one of what has that name on its side, too,
    and a QubesException of a name that it does not know (qubesadmin/base.py).
    """

    __str__ = Exception.__str__


class NotAttached(qubesd.DeviceNotAssigned):
    """The same."""

    __str__ = Exception.__str__


_IDENTITY = re.compile("[0-9a-fA-F]{4}:[0-9a-fA-F]{4}:.*")


NOBODY = "0000:0000::?******"
"""The identity of each device of which nothing is known (VirtualDevice of the platform)."""


def require_possible(
    vm: Qube, port: Port, options: Mapping[str, object], device_id: str = "*"
) -> None:
    """QubesException if what is in a port could never be attached to `vm`; `*` is any.

    The client formats the text with `%` (QubesException of qubes-core-admin-client).
    """
    backend = port.backend_domain
    if options:
        raise QubesValueError(sentence("UP-902", option=min(options)).replace("%", "%%"))
    if vm.klass == "AdminVM":
        raise QubesException(sentence("UP-905"))
    if backend is None:
        return
    if backend.klass == "AdminVM":
        raise QubesException(sentence("UP-940"))
    if backend.klass == "RemoteVM":
        raise QubesException(sentence("UP-944", qube=backend.name))
    _require_device(port.port_id, device_id)
    if vm == backend:
        raise QubesException(sentence("UP-906", port=port, qube=vm.name))


def _require_device(port_id: str, device_id: str) -> None:
    """What qvm-usb reads as port and identity may be the name of an interface, as in `2-1:1.0`."""
    is_identity = device_id == "*" or _IDENTITY.fullmatch(device_id)
    if port_id == "*" and device_id == NOBODY:
        raise QubesException(sentence("UP-945"))
    if is_identity and port_id == "*":
        return
    try:
        BusId(port_id if is_identity else f"{port_id}:{device_id}")
    except RequestError as error:
        raise QubesValueError(str(error).replace("%", "%%")) from error
