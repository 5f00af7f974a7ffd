# SPDX-License-Identifier: GPL-2.0-or-later
"""UP-9: what qubesd's extension in dom0 says: to users of qvm-usb, and in the qubes' logs."""

ENTRIES = {
    "UP-901": (
        "there is no USB device {device}; 'qvm-usb list' shows those that there are",
        "Nothing is plugged into that port, or the qube with the controllers does not run.",
        "Start that qube, plug the device in, and see `qvm-usb list`.",
    ),
    "UP-902": (
        "USB devices have no options such as '{option}'; leave them away",
        "Other kinds of devices have options, USB devices have none.",
        "Leave `-o` and `--option` away.",
    ),
    "UP-903": (
        "the USB device that was in {port} is not there any more; see 'qvm-usb list'",
        "It was unplugged, or another device is in that port now.",
        "`qvm-usb list` shows what there is.",
    ),
    "UP-904": (
        "USB device {port} is not attached to {qube}; 'qvm-usb list' shows where it is",
        "It was detached before, or unplugged, or another qube has it.",
        "There is nothing to do, or name the qube that has it.",
    ),
    "UP-905": (
        "USB devices cannot be attached to dom0; name another qube",
        "By design: dom0 trusts no USB device.",
        "Use a qube. For keyboard and mouse there is `qubes-input-proxy`.",
    ),
    "UP-906": (
        "USB device {port} is in {qube} already; name another qube",
        "The device is plugged into that very qube.",
        "Use it there, or name the qube that shall have it.",
    ),
    "UP-907": (
        "{qube} is paused or suspended; resume it first",
        "A qube that does not run cannot give or take a device.",
        "`qvm-unpause` it.",
    ),
    "UP-908": (
        "USB device {port} is attached to {qube} already; detach it first",
        "One device has one qube at a time.",
        "`qvm-usb detach` takes it from that qube.",
    ),
    "UP-909": (
        "{service} in {qube} gave no answer for {seconds:.0f} seconds; restart that qube",
        "The qube hangs, or is overloaded.",
        "Look at it, and restart it.",
    ),
    "UP-910": (
        "{service} in {qube} cannot be called: {reason}; see that dom0 has memory and room left",
        "The program that calls a qube could not be started in dom0.",
        "Free some memory in dom0, and try again.",
    ),
    "UP-911": (
        "qubes-usb-proxy is not installed in {qube}; "
        "install it there or in its template, and restart {qube}",
        "The service that dom0 calls is not in that qube.",
        "Install the package `qubes-usb-proxy` in that qube's template, and restart the qube.",
    ),
    "UP-912": (
        "the call of {service} in {qube} was refused{said}; see dom0's policy for {service}",
        "A rule in dom0's `/etc/qubes/policy.d` denies it.",
        "Find the rule with `grep -r qubes.USB /etc/qubes/policy.d`.",
    ),
    "UP-913": (
        "{qube}: {quoted}",
        "A program in that qube had a reason that is not in this list.",
        "See the words that are quoted, and that qube's journal.",
    ),
    "UP-914": (
        "{service} in {qube} failed with exit code {code} and gave no reason; "
        "see the journal of {qube}",
        "The service was killed, or something between dom0 and the qube broke.",
        "Try again; that qube's journal may tell more.",
    ),
    "UP-915": (
        "the rule that allows the call cannot be written to {path}: {reason}; make room in /run",
        "`/run/qubes/policy.d` in dom0 is missing or full.",
        "Make room in dom0's `/run`, or reinstall qubes-core-dom0 if the folder is missing.",
    ),
    "UP-916": (
        "{path} cannot be removed: {reason}; remove it as root",
        "The folder `/run` of dom0 is read-only or broken, so a rule that allows a call stays.",
        "Remove the file by hand in dom0.",
    ),
    "UP-917": (
        "a port of class '{devclass}' has no USB device; name one of class 'usb'",
        "Some program asked this extension for a device of another kind.",
        "Report the program that asked.",
    ),
    "UP-918": (
        "USB device {port} is not attached to {qube}: {quoted}",
        "It is assigned to that qube, but could not be attached, for the reason that is quoted.",
        "It is tried again for half a minute, where that may help. See the quoted sentence.",
    ),
    "UP-919": (
        "USB device {port} is not attached to {qube}, given up; attach it with qvm-usb",
        "It is assigned to that qube, but could not be attached for half a minute.",
        "See the sentences before this one in the same log, and attach it with `qvm-usb`.",
    ),
    "UP-920": (
        "USB device {port} ({device}) is not the one that is assigned to {qube} ({wanted}), "
        "skipped; assign it if it shall be attached",
        "Another device is in a port that is assigned together with the identity of a device.",
        "`qvm-usb assign` this device, too, or the port alone with `--port`.",
    ),
    "UP-921": (
        "USB device {port} was {done} {qube}, but the QubesDB of its qube disagrees; "
        "see 'qvm-usb list'",
        "The two qubes did what was asked, and the one with the controllers did not note it.",
        "If `qvm-usb list` is wrong, restart the qube with the controllers.",
    ),
    "UP-922": (
        "USB devices of {qube} cannot be read: {reason}; look again when that qube runs",
        "The QubesDB of a qube did not answer, often because the qube is just ending.",
        "Nothing, if it was; else restart that qube.",
    ),
    "UP-923": (
        "what is assigned to {qube} cannot be read: {reason}; see 'qvm-usb list --assignments'",
        "The settings of that qube are broken, or it is just being changed.",
        "Look at the assignments; remove and make anew those that cannot be read.",
    ),
    "UP-924": (
        "{event}: another extension's handler failed: {reason}; report it to its authors",
        "An extension of qubesd that is not this one failed when it was told of a device.",
        "Report it to its authors; this one goes on.",
    ),
    "UP-925": (
        "USB device {port} cannot be attached by itself: {reason}; attach it with qvm-usb",
        "Something in qubesd failed while a device that had appeared was looked at.",
        "Attach it with `qvm-usb`; report the sentence if it comes again.",
    ),
}
