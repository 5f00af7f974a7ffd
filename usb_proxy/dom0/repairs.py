# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that `qubes-usb-proxy doctor` of a qube is known to name.

Others are not shown in dom0: whoever reads them may type them there. tests/unit/test_doctor.py
holds each repair of `usb_proxy.tool` against this list.
"""

from __future__ import annotations

import re

_NAME = r"[\w.+-]+"
_LOCKS = "/run/qubes-usb-proxy"
_BUS = r"/sys/bus/usb/devices/usb\d+/(authorized|(interface_)?authorized_default)"
_VIRTUAL = r"/sys/devices/platform/vhci_hcd\.\*/usb\*/authorized_default"
_KEY = r"/qubes-usb-devices/[\w-]+"
_FOLDER = "install -d -o root -g qubes -m 2770 /run/qubes"
_PACKAGE = r"qubes(db)?(-[a-z]+)+"

KNOWN = (
    r"(sudo )?qubes-usb-proxy (doctor|repair)",
    rf"qubes-usb-proxy detach ({_NAME}:)?{_NAME}",
    rf"apt-get install -y --reinstall -o Dpkg::Options::=--force-confmiss {_PACKAGE}",
    rf"apt-get install -y --reinstall linux-(modules-extra|modules|image)-{_NAME}",
    rf"dnf (reinstall -y {_PACKAGE}|install -y kernel-modules-extra-{_NAME})",
    rf"pacman -S --noconfirm ({_PACKAGE}|linux)",
    r"chmod 0755 (/etc/qubes-rpc/qubes\.USB\w*|/usr/lib/qubes/usb-[a-z-]+(/launch)?)",
    rf"((groupadd -r qubes|rm /run/qubes) && )?{_FOLDER}",
    rf"chown root:root {_LOCKS} && chmod 0755 {_LOCKS}",
    rf"chmod 0600 {_LOCKS}/\*\.lock",
    r"""printf "force-user='root'\\n" > /etc/qubes/rpc-config/qubes\.USB""",
    r"rm /etc/udev/rules\.d/80-qubes-usb-reset\.rules && udevadm control --reload",
    r"ln -sfn /usr/lib/qubes/usb-detach-all /etc/qubes/suspend-pre\.d/usb-detach-all\.sh",
    rf"sed -i '/\^ \*install \*(usbip|vhci)[_-](host|hcd|core) /d' /(\w+/)+modprobe\.d/{_NAME}",
    rf"depmod {_NAME}",
    rf"echo 1 \| tee {_BUS}( {_BUS})*",
    r"echo 1 \| tee /sys/bus/usb/drivers_autoprobe",
    r"echo 0 \| tee /proc/sys/kernel/deny_new_usb",
    rf"modprobe vhci-hcd && echo 1 \| tee {_VIRTUAL}",
    r"echo (usbip-host|vhci-hcd) > /etc/modules-load\.d/qubes-usb-proxy\.conf",
    r"echo \d+ > /sys/devices/platform/vhci_hcd\.0/detach",
    r"modprobe -r usbip-host",
    r"mount -o remount,rw /sys",
    r"systemctl restart (qubes-db|usbguard)",
    rf"qubesdb-rm {_KEY}/connected-to {_KEY}/x-pid; qubesdb-write /qubes-usb-devices ''",
    r"usbguard allow-device 'via-port \"[\d.-]+\"'",
)

_KNOWN = re.compile("|".join(f"(?:{shape})" for shape in KNOWN), re.ASCII)


def is_known(untrusted_command: str) -> bool:
    """Whether a command has the shape of a repair of this project."""
    return _KNOWN.fullmatch(untrusted_command) is not None
