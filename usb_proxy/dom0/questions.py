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

LISTENS = "00010000"
"""The flags of a socket that is listened at, __SO_ACCEPTCON (net/unix/af_unix.c, unix_seq_show)."""


async def ask(device: USBDevice, frontends: Mapping[Any, Assignment]) -> str | None:
    """The name of the qube that gets a device; '' for none of them, None if nobody can be asked.

    confirm_device_attachment answers '' then, too.
    """
    app = device.backend_domain.app
    gui: Any = getattr(app.domains["dom0"], "guivm", None) or app.domains["dom0"]
    if not (_is_listened_at(AGENT) if gui.klass == "AdminVM" else gui.is_running()):
        return None
    return await confirm_device_attachment(device, frontends)


def _is_listened_at(path: str) -> bool:
    """Whether a program waits at a socket; its file outlives one that dies, as at a logout."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as table:
        sockets = [line.split(maxsplit=7) for line in table]
    names = [fields[7].rstrip("\n") for fields in sockets if fields[3] == LISTENS and fields[7:]]
    return os.path.realpath(path) in map(os.path.realpath, names)
