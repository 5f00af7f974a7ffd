# SPDX-License-Identifier: GPL-2.0-or-later
"""The administrator's command: what there is, what is wrong, and cleaning it up."""
