# SPDX-License-Identifier: GPL-2.0-or-later
"""Asking the user which qube gets a device, where there is somebody to be asked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from usb_proxy.dom0.qubesd import confirm_device_attachment

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from usb_proxy.dom0.device import USBDevice
    from usb_proxy.dom0.qubesd import Assignment

    Ask = Callable[[USBDevice, Mapping[Any, Assignment]], Awaitable[str | None]]

AGENT = "/var/run/qubes/device-agent.GUI"
"""The socket of the program that asks, in dom0 while somebody is logged in (qubes/ext/utils.py)."""


async def ask(device: USBDevice, frontends: Mapping[Any, Assignment]) -> str | None:
    """The name of the qube that gets a device; '' for none of them, None if nobody can be asked.

    confirm_device_attachment answers '' then, too.
    """
    app = device.backend_domain.app
    gui: Any = getattr(app.domains["dom0"], "guivm", None) or app.domains["dom0"]
    if not (os.path.exists(AGENT) if gui.klass == "AdminVM" else gui.is_running()):
        return None
    return await confirm_device_attachment(device, frontends)
