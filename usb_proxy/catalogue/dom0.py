# SPDX-License-Identifier: GPL-2.0-or-later
"""UP-9: what qubesd's extension in dom0 says: to users of qvm-usb, and in qubesd's journal."""

ENTRIES = {
    "UP-901": (
        "there is no USB device {device}; see 'qvm-usb list'",
        ("Nothing is plugged into that port.", "The qube with the controllers does not run."),
        "Start that qube with `qvm-start BACKEND`, plug the device in, and run `qvm-usb list`.",
    ),
    "UP-902": (
        "USB devices have no options such as '{option}'; leave them out",
        ("USB devices have no options, though other kinds of devices have some.",),
        "Leave out `-o` and `--option`: `qvm-usb attach QUBE BACKEND:DEVICE`.",
    ),
    "UP-903": (
        "the USB device that was in {port} is not there any more; see 'qvm-usb list'",
        ("The device was unplugged.", "Another device is in that port now."),
        "`qvm-usb list` shows the devices.",
    ),
    "UP-904": (
        "USB device {port} is not attached to {qube}; 'qvm-usb list' shows where it is",
        ("The device was detached before.", "The device was unplugged.", "Another qube has it."),
        "If the device is free, there is nothing to do. Otherwise name the qube that has it, as "
        "`qvm-usb list` shows it.",
    ),
    "UP-905": (
        "USB devices cannot be attached to dom0; name another qube",
        ("By design, dom0 trusts no USB device.",),
        "Attach it to a qube: `qvm-usb attach QUBE BACKEND:DEVICE`. For keyboard and mouse, use "
        "`qubes-input-proxy`.",
    ),
    "UP-906": (
        "USB device {port} is in {qube} already; name another qube",
        ("The device is plugged into that qube itself.",),
        "Use it there, or name the qube that should have it: `qvm-usb attach QUBE BACKEND:DEVICE`.",
    ),
    "UP-907": (
        "{qube} is paused or suspended; resume it first",
        ("The qube does not run now, so it cannot give or take a device.",),
        "Run `qvm-unpause QUBE`.",
    ),
    "UP-908": (
        "USB device {port} is attached to {qube} already; detach it first",
        ("A device can be attached to only one qube at a time.",),
        "`qvm-usb detach QUBE BACKEND:DEVICE` takes it back from that qube.",
    ),
    "UP-909": (
        "{service} in {qube} gave no answer for {seconds:.0f} seconds; restart that qube",
        ("The qube hangs.", "The qube is overloaded."),
        "See what the qube is doing, and restart it: `qvm-shutdown --wait QUBE && qvm-start QUBE`.",
    ),
    "UP-910": (
        "{service} in {qube} cannot be called: {reason}; make sure that dom0 has free memory and "
        "disk space",
        ("dom0 could not start the program that calls a qube.",),
        "`free -m` and `df /` in dom0 show what is short. Free some memory or disk space, and try "
        "again.",
    ),
    "UP-911": (
        "qubes-usb-proxy is not installed in {qube}; "
        "install it there or in its template, and restart {qube}",
        ("The service that dom0 calls is not in that qube.",),
        "Install the package in that qube's template, with `sudo apt install qubes-usb-proxy` or "
        "`sudo dnf install qubes-usb-proxy`, and restart the qube.",
    ),
    "UP-912": (
        "the call of {service} in {qube} was refused{said}; see dom0's policy for {service}",
        ("A rule in dom0's `/etc/qubes/policy.d` denies it.",),
        "Find the rule with `grep -r qubes.USB /etc/qubes/policy.d`.",
    ),
    "UP-913": (
        "{qube}: {quoted}",
        ("A program in that qube gave a reason that is not in this list.",),
        "Read the quoted words, and `sudo journalctl -e` in that qube.",
    ),
    "UP-914": (
        "{service} in {qube} failed with exit code {code} and gave no reason; "
        "see the journal of {qube}",
        ("The service was killed.", "Something between dom0 and the qube broke."),
        "Try again. `sudo journalctl -e` in that qube may say more.",
    ),
    "UP-915": (
        "the rule that allows the call cannot be written to {path}: {reason}; repair dom0's /run",
        ("`/run` in dom0 is full.", "`/run` in dom0 is read-only.", "`/run` in dom0 is broken."),
        "Read the quoted reason. `df /run` in dom0 shows whether it is full: make room there, or "
        "restart dom0.",
    ),
    "UP-916": (
        "{path} cannot be removed: {reason}; remove it as root",
        ("The folder `/run` of dom0 is read-only.", "The folder `/run` of dom0 is broken."),
        "The file still holds a rule that allows a call. Remove it by hand in dom0: `sudo rm "
        "PATH`.",
    ),
    "UP-917": (
        "a port of class '{devclass}' has no USB device; name one of class 'usb'",
        ("A program asked this extension for a device of another kind.",),
        "Report the program that asked.",
    ),
    "UP-918": (
        "USB device {port} is not attached to {qube}: {quoted}",
        ("The device is assigned to that qube, but could not be attached, for the quoted reason.",),
        "Read the quoted sentence. dom0 tries again for half a minute, if that may help. "
        "`qvm-usb-doctor QUBE BACKEND:PORT` looks for the cause.",
    ),
    "UP-919": (
        "USB device {port} is not attached to {qube}, and dom0 has given up; attach it with "
        "qvm-usb",
        (
            "The device is assigned to that qube, but could not be attached for half a minute.",
            "It was attached, and its connection ended at once, again and again.",
        ),
        "Read the sentences before this one in the same log, and run `qvm-usb attach QUBE "
        "BACKEND:PORT`.",
    ),
    "UP-920": (
        "USB device {port} ({device}) is not the one that is assigned to {qube} ({wanted}), "
        "so it is skipped; assign it if it should be attached",
        ("The assignment names a port and a device, and another device is in that port.",),
        "Assign this device, too, with `qvm-usb assign QUBE BACKEND:PORT`, or assign only the "
        "port with `qvm-usb assign --port QUBE BACKEND:PORT`.",
    ),
    "UP-921": (
        "USB device {port} was {done} {qube}, but QubesDB in the qube with the controllers says "
        "otherwise; see 'qvm-usb list'",
        ("Both qubes did what dom0 asked, but the one with the controllers did not note it.",),
        "If `qvm-usb list` is wrong, restart the qube with the controllers: `qvm-shutdown --wait "
        "BACKEND && qvm-start BACKEND`.",
    ),
    "UP-922": (
        "USB devices of {qube} cannot be read: {reason}; try again when that qube runs",
        ("The QubesDB of a qube did not answer, often because the qube was shutting down.",),
        "If the qube was shutting down, there is nothing to do. Otherwise restart it: "
        "`qvm-shutdown --wait QUBE && qvm-start QUBE`.",
    ),
    "UP-923": (
        "what is assigned to {qube} cannot be read: {reason}; see 'qvm-usb list --assignments'",
        ("The settings of that qube are broken.", "Somebody is changing them."),
        "Look at `qvm-usb list --assignments`. Remove the assignments that cannot be read, and "
        "assign the devices again.",
    ),
    "UP-924": (
        "{event}: another extension's handler failed: {reason}; report it to its authors",
        ("An extension of qubesd that is not this one failed on an event of a device.",),
        "Report it to its authors. This extension keeps working.",
    ),
    "UP-925": (
        "USB device {port} cannot be attached automatically: {reason}; attach it with qvm-usb",
        ("Something in qubesd failed while it examined a device that had appeared.",),
        "Run `qvm-usb attach QUBE BACKEND:PORT`. Report the sentence if it appears again.",
    ),
    "UP-930": (
        "{qube} gave back USB device {port}, and nobody said why, so it stays free; "
        "attach it with qvm-usb",
        ("The device was detached inside a qube.", "Its connection broke."),
        "Run `qvm-usb attach QUBE BACKEND:PORT`, or plug the device in again. The package in the "
        "qube with the controllers is older than this one. A newer qubes-usb-proxy there says "
        "which of the two it was.",
    ),
    "UP-931": (
        "USB device {port} is not attached to {qube}, which denies one of its interfaces; "
        "attach another, or change its list of denied devices",
        (
            "The feature `usb-auto-attach` and the qube's list of denied devices both name the "
            "device.",
        ),
        "The list counts first. Look at both with `qvm-features QUBE usb-auto-attach` and "
        "`qvm-prefs QUBE devices_denied`.",
    ),
    "UP-932": (
        "'{pattern}' in the feature {feature} of {qube} is not a pattern; "
        "write it as 'u' and six hexadecimal digits or '*'",
        (
            "The feature has a word that is not a class, subclass and protocol of USB, with `*` "
            "for any digit.",
        ),
        "Set the feature again, for example `qvm-features work usb-auto-attach 'u0701**'`.",
    ),
    "UP-940": (
        "dom0's own USB devices cannot be attached; plug the device into a USB qube",
        ("The connection between qubes cannot start in dom0, so dom0 offers no device.",),
        "Use a USB qube such as `sys-usb`, which has the controllers. `sudo qubesctl state.sls "
        "qvm.sys-usb` creates it.",
    ),
    "UP-941": (
        "dom0 has no folder {path} for the rule that allows the call; reinstall qubes-core-dom0",
        (
            "The part of Qubes OS that makes the folder when dom0 starts is missing.",
            "That part is too old.",
        ),
        "Restart dom0. If the folder is still missing, run `sudo qubes-dom0-update "
        "--action=reinstall qubes-core-dom0`.",
    ),
    "UP-942": (
        "the USB device is attached to {qube}, with a warning: {quoted}",
        ("The program in that qube attached the device, and found something wrong.",),
        "Read the quoted words. `sudo qubes-usb-proxy doctor` in that qube looks for more.",
    ),
    "UP-943": (
        "{qube} has a list of denied devices, and nobody says what kind of device is in {port}, "
        "so it is not attached; try again, or set the feature usb-any-interface of {qube}",
        ("The qube with the controllers does not say what kind of device it is.",),
        "Plug the device in again. To attach it all the same, run `qvm-features QUBE "
        "usb-any-interface 1`.",
    ),
    "UP-944": (
        "{qube} runs on another machine, whose USB devices cannot be attached here; name a qube of "
        "this machine",
        ("A qube of the kind RemoteVM has no devices that dom0 knows of.",),
        "Plug the device into this machine, and write the names as `qvm-usb list` shows them.",
    ),
    "UP-945": (
        "nothing is known of this device, so it cannot be assigned by what it is; name its port",
        ("The qube with the controllers says nothing of the device that dom0 can read.",),
        "Plug the device in again, or assign its port with `qvm-usb assign --port QUBE "
        "BACKEND:PORT`.",
    ),
    "UP-946": (
        "a USB device cannot be required for the start of a qube; assign it without --required",
        ("A qube starts without its USB devices, and gets them when it runs.",),
        "Assign it with `qvm-usb assign QUBE BACKEND:PORT`.",
    ),
    "UP-947": (
        "the computer has not suspended for two minutes, so USB devices are attached again; "
        "remove {path}",
        ("A qube could not be suspended, so the computer was not.",),
        "Read `sudo journalctl -u qubesd -u qubes-suspend` in dom0 for the cause. The file goes "
        "with the next suspend that succeeds.",
    ),
    "UP-948": (
        "USB device {port} is assigned to {qube}, but was there when qubesd started, so it stays "
        "free; attach it with qvm-usb",
        (
            "The device was plugged in while qubesd was not running.",
            "The device was free before qubesd was restarted.",
        ),
        "Run `qvm-usb attach QUBE BACKEND:PORT`, or plug the device in again.",
    ),
    "UP-949": (
        "nobody could be asked which qube gets USB device {port}, so it stays free; "
        "log in, and plug it in again",
        ("The device is assigned with `--ask`, and nobody is logged in.",),
        "Run `qvm-usb attach QUBE BACKEND:PORT`, or plug the device in again.",
    ),
}
