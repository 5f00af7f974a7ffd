# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that a qube gets for what they are: its feature `usb-auto-attach`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from usb_proxy.dom0.qubesd import DeviceAssignment
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Assignment, Qube, VirtualDevice

FEATURE = "usb-auto-attach"
"""Interface patterns, separated by commas, as the list of denied devices has them (`u03****`,
DeviceInterface.from_str_bulk in qubes/device_protocol.py); `ask:` before them asks the user."""

_ASK = "ask:"
_PATTERN = re.compile(r"u[0-9a-f*]{6}")

_told: dict[str, str] = {}
"""The value of the feature of which it was told what is wrong with it, by qube."""


def has_patterns(vm: Qube) -> bool:
    """Whether a qube gets any device for what it is."""
    return bool(vm.features.check_with_template(FEATURE, ""))


def assigned(vm: Qube, device: VirtualDevice) -> Assignment | None:
    """An assignment to a qube that wants a device for one of its interfaces, and denies none."""
    value = vm.features.check_with_template(FEATURE, "")
    if not isinstance(value, str) or not value:
        return None
    ask = value.startswith(_ASK)
    patterns = [part.strip().lower() for part in value.removeprefix(_ASK).split(",")]
    wrong = [one for one in patterns if not _PATTERN.fullmatch(one)]
    if wrong and _told.get(vm.name) != value:
        _told[vm.name] = value
        text = sentence("UP-932", qube=vm.name, feature=FEATURE, pattern=wrong[0])
        vm.log.warning("%s", text)
    codes = _sevens(device.device_id.rpartition(":")[2])
    if not _any((one for one in patterns if one not in wrong), codes):
        return None
    denied = getattr(vm, "devices_denied", None) or ""
    if _any(_sevens(denied), codes):
        vm.log.warning("%s", sentence("UP-931", port=device.port, qube=vm.name))
        return None
    mode = "ask-to-attach" if ask else "auto-attach"
    found: Assignment = DeviceAssignment(device, vm, options={}, mode=mode)
    return found


def _sevens(text: str) -> list[str]:
    return [text[start : start + 7] for start in range(0, len(text), 7)]


def _any(patterns: Iterable[str], codes: list[str]) -> bool:
    """Whether an interface is as one of the patterns, where `*` stands for any digit."""
    return any(fnmatchcase(code, one.replace("*", "?")) for one in patterns for code in codes)
