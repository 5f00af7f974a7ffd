# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong in the lab."""


class LabError(Exception):
    """The lab could not do what it was asked; ends with the guest's console where there is one."""


class CommandFailed(LabError):
    """A command in a guest ended with another code than 0."""
