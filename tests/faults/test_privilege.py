# SPDX-License-Identifier: GPL-2.0-or-later
"""What unprivileged accounts of either qube can reach, above all through sudo."""

import shlex

from .conftest import Faults
from .table import Case, each

LOCKS, RECORDS = "/run/qubes-usb-proxy", "/run/qubes"

STRANGER = Case("privilege", "an account outside of the group qubes")
MEMBER = Case("privilege", "an account of the group qubes, without sudo", short=True)
ARGUMENTS = [
    Case(
        "privilege", f"the service argument is {argument!r}", told=told, data={"argument": argument}
    )
    for argument, told in (
        ("usb1", "'usb1' is a root hub"),
        ("2-1:1.0", "is one interface of a device"),
        ("../../etc", "names no USB device"),
        ("2-1/..", "names no USB device"),
        ("--help", "names no USB device"),
        ("0x1234", "is not vendor and product"),
        ("2" * 40, "names no USB device"),
        ("", "one argument is needed"),
    )
]

RECORD = "usb-import-sys-usb-2-1.state"
CASES = [STRANGER, MEMBER, *ARGUMENTS]


REFUSED = (
    "cat {locks}/*.lock",
    "rm {locks}/export-{device}.lock",
    "touch {locks}/x",
    "echo 0 > /sys/devices/platform/vhci_hcd.0/detach",
    "echo '0 0 131074 3' > /sys/devices/platform/vhci_hcd.0/attach",
    "echo 'add {device}' > /sys/bus/usb/drivers/usbip-host/match_busid",
    "echo {device} > /sys/bus/usb/drivers/usbip-host/unbind",
    "echo -1 > /sys/bus/usb/devices/{device}/usbip_sockfd",
    "kill $(pgrep -f '[l]aunch usb-')",
    "/usr/lib/qubes/usb-detach-all",
    "/usr/lib/qubes/usb-reset {device}",
    "/usr/lib/qubes/usb-proxy/launch usb-repair",
    "echo {device} | /etc/qubes-rpc/qubes.USBDetach",
    "echo sys-usb {device} | /etc/qubes-rpc/qubes.USBDetach",
    "sudo -n /usr/lib/qubes/usb-detach-all",
    "sudo -n /usr/lib/qubes/usb-export {device}",
    "sudo -n qubes-usb-proxy repair",
    "sudo -n qubes-usb-proxy detach {device}",
    "sudo -n qubes-usb-proxy status --watch",
    "sudo -n /usr/lib/qubes/usb-import {records}/{record}",
)
REFUSED_TO_STRANGERS = (
    *REFUSED,
    "sudo -n qubes-usb-proxy status",
    "ls {records}",
    "touch {records}/x",
)


@each([STRANGER, MEMBER])
def test_what_an_account_cannot_do_to_an_attachment(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    faults.run_both("id stranger 2>&- || useradd stranger")
    assert faults.attach(stick).code == 0
    faults.check_attached(stick)
    names = {"locks": LOCKS, "records": RECORDS, "record": RECORD, "device": stick}
    user, attempts = ("stranger", REFUSED_TO_STRANGERS) if case is STRANGER else ("user", REFUSED)
    for guest in (faults.backend, faults.frontend):
        for attempt in attempts:
            done = guest.run(attempt.format(**names), user=user, check=False)
            assert done.code, f"{guest.name}: {user} may {attempt}"
            assert "Traceback" not in done.stderr.decode()
    faults.check_attached(stick)
    done = faults.detach(stick)
    faults.check(case, done)


@each(ARGUMENTS)
def test_service_arguments(faults: Faults, case: Case) -> None:
    """From an account of the frontend, where the policy allows any argument."""
    argument = shlex.quote(f"qubes.USB+{case.data['argument']}")
    with faults.lab.allowed("qubes.USB", "*", faults.frontend, faults.backend):
        done = faults.frontend.run(f"qrexec-client-vm sys-usb {argument}", user="user", check=False)
    faults.check(case, done)
