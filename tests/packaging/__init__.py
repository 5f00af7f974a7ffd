# SPDX-License-Identifier: GPL-2.0-or-later
"""The packages: what is in them, how they are built, and how they install."""
