# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab for hours: attach, traffic, detach and faults in random order, and a look for leaks."""
