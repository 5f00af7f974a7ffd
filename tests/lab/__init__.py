# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab: two real kernels, and a stand-in for the platform between them."""

from .errors import CommandFailed, LabError
from .guests import Guest
from .lab import Lab
from .router import Call, Completed

__all__ = ["Call", "CommandFailed", "Completed", "Guest", "Lab", "LabError"]
