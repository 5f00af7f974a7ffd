# SPDX-License-Identifier: GPL-2.0-or-later
"""How qvm-usb-doctor shows what it found: on a screen, and to strangers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from usb_proxy.dom0.asking import Finding
from usb_proxy.idents import STUB_DOMAIN_SUFFIX

MARKS = {"ok": "+", "warning": "!", "error": "x"}

SAID = re.compile(
    r"(?<=is there: ).*|(?<=serial )(?:\"[^\"]*\"|\S+)|(?<=name )\"[^\"]*\"", re.IGNORECASE
)
"""What a device says of itself, here and in a rule of usbguard (usbguard-rules.conf(5))."""

BEFORE = r"(?:(?<![\w.-])|(?<=usb-import-))"
AFTER = rf"(?![\w-])|(?={STUB_DOMAIN_SUFFIX}(?![\w-]))|(?=-\d+-[\d.]+\.state\b)"
"""Around the name of a qube: what is part of no name, its stub domain, a record of an import."""


def screen(found: Sequence[Finding]) -> Iterator[str]:
    """What was found, in lines: what is right is only counted."""
    right = sum(finding.level == "ok" for finding in found)
    for finding in found:
        if finding.level != "ok":
            yield f"{MARKS[finding.level]} {finding.side}: {finding.text}"
            if finding.repair:
                place = f" in {finding.run_in}" if finding.run_in else ""
                yield f"  run{place}: {finding.repair}"
    yield f"{MARKS['ok']} {right} of {len(found)} checks found nothing wrong"


def anonymous(names: Sequence[str], found: Sequence[Finding]) -> list[Finding]:
    """The findings without these names of qubes and without what devices say of themselves."""
    numbers = {name: f"qube-{number}" for number, name in enumerate(sorted(set(names)), start=1)}
    longest_first = sorted(map(re.escape, numbers), key=len, reverse=True)
    named = re.compile(f"{BEFORE}({'|'.join(longest_first)})(?:{AFTER})")

    def without(text: str) -> str:
        if numbers:
            text = named.sub(lambda match: numbers[match[1]], text)
        return SAID.sub("...", text)

    return [
        Finding(without(finding.side), finding.level, *map(without, finding[2:]))
        for finding in found
    ]
