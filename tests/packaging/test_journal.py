# SPDX-License-Identifier: GPL-2.0-or-later
"""What the real journald makes of our entries."""

import json
from pathlib import Path

import pytest

from usb_proxy import journal

from .machine import TOP, need, need_root, run

JOURNALD = Path("/lib/systemd/systemd-journald")
ENTRIES = """
from usb_proxy.errors import InUseError
from usb_proxy.host import Host
from usb_proxy.journal import Entry, UNPLUGGED

export = Entry(Host(), "2-1", "work", is_import=False)
export.product = "46f4:0001"
export.attached()
export.detached(UNPLUGGED)
Entry(Host(), "2-1", "sys-usb", is_import=True).attached(7)
Entry(Host(), "2-1", "work", is_import=False).failed(InUseError("UP-401", device="2-1"))
"""
SCRIPT = f"""
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal
{JOURNALD} & journald=$!
until [ -S /run/systemd/journal/socket ]; do sleep 0.1; done
/usr/bin/python3 -c "$1"
journalctl --sync
journalctl -qo json -D /run/log/journal -t "$2"
kill $journald
"""


def test_journald_knows_the_fields() -> None:
    """In a name space where it is alone, and writes to a file system of its own."""
    need_root()
    need("unshare", "journalctl")
    if not JOURNALD.exists():
        pytest.skip("systemd-journald is not installed")
    said = run(
        "timeout",
        "60",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-ec",
        SCRIPT,
        "sh",
        ENTRIES,
        journal.IDENTIFIER,
        PYTHONPATH=str(TOP),
    )
    entries = [json.loads(line) for line in said.splitlines()]
    names = ("MESSAGE", "MESSAGE_ID", "PRIORITY", "USB_PROXY_ROLE", "USB_PROXY_PEER")
    assert [tuple(entry[name] for name in names) for entry in entries] == [
        (
            "USB device 2-1 (46f4:0001) is attached to work",
            journal.ATTACHED,
            "6",
            "exporter",
            "work",
        ),
        (
            "USB device 2-1 (46f4:0001) was detached from work after 0 s: unplugged",
            journal.DETACHED,
            "6",
            "exporter",
            "work",
        ),
        (
            "USB device 2-1 of sys-usb is attached to this qube at port 7",
            journal.ATTACHED,
            "6",
            "importer",
            "sys-usb",
        ),
        (
            "USB device 2-1 was not attached to work: USB device 2-1 is attached already; "
            "detach it first [UP-401]",
            journal.FAILED,
            "4",
            "exporter",
            "work",
        ),
    ]
    assert entries[1]["USB_PROXY_REASON"] == journal.UNPLUGGED
    assert (entries[2]["USB_PROXY_PORT"], entries[2]["_TRANSPORT"]) == ("7", "journal")
    assert entries[3]["USB_PROXY_ERROR"] == "UP-401"
