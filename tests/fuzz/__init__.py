# SPDX-License-Identifier: GPL-2.0-or-later
"""Each parser of what may be anything, fed by a fuzzer that sees which code is reached."""
