# SPDX-License-Identifier: GPL-2.0-or-later
"""What may be raised: users read all of these but ProtocolError."""

from typing import Any


class QubesException(Exception):
    """The request cannot be done."""


class QubesValueError(QubesException, ValueError):
    """It is malformed."""


class UnrecognizedDevice(QubesException, ValueError):
    """No such device is there."""


class DeviceAlreadyAttached(QubesException, KeyError):
    """A qube has it."""


class DeviceAlreadyAssigned(QubesException, KeyError):
    """A qube shall have it already."""


class DeviceNotAssigned(QubesException, KeyError):
    """That qube has it not."""


class QubesVMNotRunningError(QubesException):
    """A qube would have to run."""

    def __init__(self, vm: Any) -> None:
        super().__init__(f"{vm.name} is not running")


class ProtocolError(AssertionError):
    """A client named a device that it cannot mean."""
