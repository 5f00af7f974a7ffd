# SPDX-License-Identifier: GPL-2.0-or-later
"""All of them by name."""

from . import dom0_targets, targets

TARGETS = targets.TARGETS | dom0_targets.TARGETS
