# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that a qube gets for what they are: its feature `usb-auto-attach`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from usb_proxy.dom0.qubesd import DeviceAssignment
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Assignment, Port, Qube, VirtualDevice

FEATURE = "usb-auto-attach"
"""Interface patterns, separated by commas, as the list of denied devices has them (`u03****`,
DeviceInterface.from_str_bulk in qubes/device_protocol.py); `ask:` before them asks the user."""

_ASK = "ask:"
_PATTERN = re.compile(r"u[0-9a-f*]{6}")


def has_patterns(vm: Qube) -> bool:
    """Whether a qube gets any device for what it is."""
    return bool(vm.features.check_with_template(FEATURE, ""))


def assigned(vm: Qube, device: VirtualDevice) -> Assignment | None:
    """An assignment to a qube that wants a device for one of its interfaces, and denies none."""
    ask, patterns, _ = _feature(vm)
    codes = _sevens(device.device_id.rpartition(":")[2])
    if not _any(patterns, codes) or _denies(vm, codes):
        return None
    mode = "ask-to-attach" if ask else "auto-attach"
    found: Assignment = DeviceAssignment(device, vm, options={}, mode=mode)
    return found


def faults(vm: Qube, device: VirtualDevice) -> Iterator[tuple[Port | None, str]]:
    """What the user should know of a qube's feature: sentences, and the port that they are of."""
    _, patterns, wrong = _feature(vm)
    codes = _sevens(device.device_id.rpartition(":")[2])
    if wrong:
        yield None, sentence("UP-932", qube=vm.name, feature=FEATURE, pattern=wrong[0])
    if _any(patterns, codes) and _denies(vm, codes):
        yield device.port, sentence("UP-931", port=device.port, qube=vm.name)


def _feature(vm: Qube) -> tuple[bool, list[str], list[str]]:
    """Whether to ask, the patterns, and what is none."""
    value = vm.features.check_with_template(FEATURE, "")
    if not isinstance(value, str) or not value:
        return False, [], []
    parts = [part.strip().lower() for part in value.removeprefix(_ASK).split(",")]
    right = [part for part in parts if _PATTERN.fullmatch(part)]
    return value.startswith(_ASK), right, [part for part in parts if part not in right]


def _denies(vm: Qube, codes: list[str]) -> bool:
    return _any(_sevens(getattr(vm, "devices_denied", None) or ""), codes)


def _sevens(text: str) -> list[str]:
    return [text[start : start + 7] for start in range(0, len(text), 7)]


def _any(patterns: Iterable[str], codes: list[str]) -> bool:
    """Whether an interface is as one of the patterns, where `*` stands for any digit."""
    return any(fnmatchcase(code, one.replace("*", "?")) for one in patterns for code in codes)
