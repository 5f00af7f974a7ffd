# SPDX-License-Identifier: GPL-2.0-or-later
"""What each guest has in use while nothing is attached, and how much that may grow."""

from __future__ import annotations

import time
from statistics import median

from tests.lab.guests import Guest

LOOK = r"""
echo 3 > /proc/sys/vm/drop_caches
read -r files rest < /proc/sys/fs/file-nr; echo files $files
set -- /proc/1/fd/*; echo agent_files $#
awk '/^(MemAvailable|SUnreclaim|KernelStack):/ { print $1, $2 }' /proc/meminfo | tr -d :
awk '/^VmRSS:/ { print "agent_memory", $2 }' /proc/1/status
echo slots $(cat /sys/bus/usb/drivers/usbip-host/match_busid 2>&- | wc -w)
echo run $(find /run/qubes /run/qubes-usb-proxy -type f ! -name 'left-*' 2>&- | wc -l)
processes=0 usbip=0
for folder in /proc/[0-9]*; do
    read -r name 2>&- < $folder/comm || continue
    case $name in
        *udev*) ;;
        stub_[rt]x | vhci_[rt]x) usbip=$((usbip + 1)) ;;
        *) [ -z "$(tr -d '\0' 2>&- < $folder/cmdline)" ] || processes=$((processes + 1)) ;;
    esac
done
echo processes $processes; echo usbip_threads $usbip
"""

COMPLAINTS = (
    "dmesg --notime | grep -E 'BUG:|WARNING:|Oops|general protection|refcount_t|Call Trace"
    "|blocked for more than|lockup|use-after-free|Out of memory'; true"
)

EXACT = ("agent_files", "slots", "run", "processes", "usbip_threads")
"""Not one more than there was before."""

GROWTH = {
    "files": (64, 0.0),
    "MemAvailable": (-16384, -4.0),
    "SUnreclaim": (2048, 1.0),
    "KernelStack": (512, 0.0),
}
"""What may be added, and what per cycle, in open files and KiB. The smallest thing that a lost
device leaves is its `struct usb_device` of 2 KiB with its descriptors; a lost socket is 1 KiB."""

REST_SECONDS = 30
"""For processes that are ending."""

Sample = dict[str, int]


def look(guest: Guest, before: list[Sample]) -> Sample:
    """What a guest has in use, once that is no more than it was, or after a while all the same."""
    deadline = time.monotonic() + REST_SECONDS
    while True:
        lines = guest.run(LOOK).text.splitlines()
        sample = {name: int(value) for name, value in (line.split() for line in lines)}
        more = any(sample[key] > first[key] for first in before for key in EXACT)
        if not more or time.monotonic() > deadline:
            return sample


def complaints(guest: Guest) -> list[str]:
    """What the guest's kernel complained of since this was asked last."""
    serious = "dmesg --level=emerg,alert,crit --notime; "
    said = guest.run(serious + COMPLAINTS).text.splitlines()
    guest.run("dmesg -C")
    return [f"{guest.name}'s kernel: {line}" for line in dict.fromkeys(said)]


def found(name: str, samples: list[Sample], cycles: int) -> list[str]:
    """What leaked in a guest: the first sample against the last, or a trend against its bound."""
    first, last = samples[0], samples[-1]
    more = [key for key in EXACT if last[key] > first[key]]
    leaks = [f"{name}: {key} {first[key]} -> {last[key]}" for key in more]
    third = max(len(samples) // 3, 1)
    for key, (fixed, each) in GROWTH.items():
        before = median(sample[key] for sample in samples[:third])
        after = median(sample[key] for sample in samples[-third:])
        bound = fixed + each * cycles
        if (after - before > bound) if bound >= 0 else (after - before < bound):
            leaks.append(f"{name}: {key} {before:.0f} -> {after:.0f}, bound {bound:+.0f}")
    return leaks


def table(name: str, samples: list[Sample]) -> list[str]:
    """First and last of everything."""
    first, last = samples[0], samples[-1]
    return [f"{name:8} {key:14} {first[key]:9} -> {last[key]:9}" for key in first]
