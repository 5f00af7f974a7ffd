# SPDX-License-Identifier: GPL-2.0-or-later
"""Exceptions with the same names and parents."""

from typing import Any


class QubesException(Exception):
    pass


class QubesValueError(QubesException, ValueError):
    pass


class QubesVMError(QubesException):
    def __init__(self, vm: Any, msg: str) -> None:
        super().__init__(msg)
        self.vm = vm


class QubesVMNotRunningError(QubesVMError):
    def __init__(self, vm: Any, msg: str | None = None) -> None:
        super().__init__(vm, msg or f"Domain not running (either powered off or paused): {vm.name}")


class DeviceAlreadyAttached(QubesException, KeyError):
    pass


class DeviceNotAssigned(QubesException, KeyError):
    pass


class UnrecognizedDevice(QubesException, ValueError):
    pass


class ProtocolError(AssertionError):
    pass
