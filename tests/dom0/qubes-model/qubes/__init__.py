# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for qubesd: what tests/dom0/contract.py asks, answered as briefly as can be."""
