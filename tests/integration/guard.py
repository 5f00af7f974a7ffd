# SPDX-License-Identifier: GPL-2.0-or-later
"""The real usbguard in a guest."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.guests import Guest

USBGUARD = """RuleFile=/run/usbguard/rules
ImplicitPolicyTarget={target}
PresentDevicePolicy=keep
PresentControllerPolicy=keep
InsertedDevicePolicy=apply-policy
IPCAllowedUsers=root
"""


@contextmanager
def running_usbguard(guest: Guest, target: str) -> Iterator[None]:
    """The real usbguard; `target` is what it does with what is plugged in meanwhile."""
    run = guest.run
    run(
        "install -d -m 700 /run/usbguard /var/log/usbguard && install -m 600 /dev/null"
        " /run/usbguard/rules && ln -s /opt/usbguard /usr/bin/usbguard"
    )
    guest.write("/run/usbguard/conf", USBGUARD.format(target=target), 0o600)
    run("usbguard-daemon -f -c /run/usbguard/conf")
    guest.wait_for("usbguard list-devices")
    yield
    run("pkill usbguard-daemon; rm -r /usr/bin/usbguard /run/usbguard")
    run("for bus in /sys/bus/usb/devices/usb*; do echo 1 > $bus/authorized_default; done")
