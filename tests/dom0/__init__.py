# SPDX-License-Identifier: GPL-2.0-or-later
"""The extension of qubesd: inside a model of qubesd, and inside the real one where there is one."""
