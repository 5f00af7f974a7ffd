# SPDX-License-Identifier: GPL-2.0-or-later
"""Every sentence that a user can read, by its id: what it says, what causes it, what helps.

The program says the first, with the id behind it (`errors.sentence`); all three are in
docs/troubleshooting.md and in qubes-usb-proxy-errors(7), which `make errors` writes.

`UP-` and three digits: the first is the exit code that goes with it, and 9 is dom0's. People look
for an id, so it never passes to a sentence that means something else; a new one takes a new number.
Only a failure imports this: who succeeds does not pay for it.
"""

from __future__ import annotations

from usb_proxy.catalogue import devices, dom0, peers, requests, system

ENTRIES: dict[str, tuple[str, tuple[str, ...], str]] = {
    **requests.ENTRIES,
    **devices.ENTRIES,
    **peers.ENTRIES,
    **system.ENTRIES,
    **dom0.ENTRIES,
}
"""By id: the sentence, with its fields in braces; each cause, one sentence; the remedy.

Causes and remedies are Markdown, and name the fields in capitals.
"""
