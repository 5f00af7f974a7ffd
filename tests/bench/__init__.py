# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks; they are no tests, and nothing depends on their figures."""
