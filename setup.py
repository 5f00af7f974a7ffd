# SPDX-License-Identifier: GPL-2.0-or-later
"""For stdeb, which makes the Debian package of dom0: `make install-dom0` installs the extension."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command import install


class Install(install.install):
    """What pybuild calls, with the folder of the package as root."""

    def run(self) -> None:
        """Install below that root."""
        command = ["make", "install-dom0", f"DESTDIR={self.root}", "PACKAGED=yes"]
        subprocess.run(command, check=True)


setup(
    name="qubes-usb-proxy-dom0",
    version=Path("version").read_text().strip(),
    description="lets qvm-usb attach USB devices of one qube to another",
    long_description=(
        "This extension of qubesd lists the USB devices of all qubes, attaches them to\n"
        "other qubes, and detaches them. The qubes need the package qubes-usb-proxy."
    ),
    url="https://www.qubes-os.org",
    packages=[],
    cmdclass={"install": Install},
)
