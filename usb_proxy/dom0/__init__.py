# SPDX-License-Identifier: GPL-2.0-or-later
"""The dom0 half: an extension of qubesd, release 4.3, and the only code here that uses `qubes`.

Sources named in these modules are files of qubes-core-admin unless another project is named.
"""
