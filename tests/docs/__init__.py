# SPDX-License-Identifier: GPL-2.0-or-later
"""What is written by programs for people to read."""
