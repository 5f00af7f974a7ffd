# SPDX-License-Identifier: GPL-2.0-or-later
"""What all tests may use."""

pytest_plugins = ["tests.lab.plugin"]
