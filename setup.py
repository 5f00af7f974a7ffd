# SPDX-License-Identifier: GPL-2.0-or-later
"""The extension of dom0; the program of a qube is installed by the Makefile."""

from pathlib import Path

from setuptools import setup

setup(
    name="qubes-usb-proxy-dom0",
    version=Path("version").read_text().strip(),
    description="lets qvm-usb attach USB devices of one qube to another",
    long_description=(
        "The extension of qubesd that lists the USB devices of all qubes, and\n"
        "attaches one to another qube or detaches it. The qubes need the package\n"
        "qubes-usb-proxy."
    ),
    license="GPL-2.0-or-later",
    url="https://www.qubes-os.org",
    author="Qubes OS USB proxy maintainers",
    author_email="qubes-devel@googlegroups.com",
    python_requires=">=3.11",
    packages=["usb_proxy.catalogue", "usb_proxy.dom0"],
    py_modules=["usb_proxy.__init__", "usb_proxy.errors", "usb_proxy.idents"],
    data_files=[("/etc/qubes/policy.d", ["policy/80-usb-proxy.policy"])],
    entry_points={
        "qubes.ext": ["qubes.ext.usb = usb_proxy.dom0.extension:USBProxyExtension"],
        "qubes.devices": ["usb = usb_proxy.dom0.device:USBDevice"],
    },
)
