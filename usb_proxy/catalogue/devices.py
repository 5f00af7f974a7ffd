# SPDX-License-Identifier: GPL-2.0-or-later
"""UP-3: the device is not there. UP-4: it, or what it needs, is taken. UP-5: it is not attached."""

ENTRIES = {
    "UP-301": (
        "no USB device {target} is plugged in; see 'qvm-usb list' in dom0",
        ("It was unplugged.", "It is in another port now."),
        "`qvm-usb list` in dom0 shows the devices and their ports.",
    ),
    "UP-302": (
        "USB device {device} went away ({reason}); plug it in again",
        (
            "Somebody unplugged it while it was in use.",
            "It lost power.",
            "It restarted on its own.",
        ),
        "Plug it in again. If this repeats, use another cable, or a port with more power. "
        "`sudo journalctl -k -g usb` in the qube with the controllers shows what its kernel saw.",
    ),
    "UP-303": (
        "USB device {device} did not survive its reset: {reason}; unplug it and plug it in again",
        ("The reset turned it into another device.", "It stopped working."),
        "Unplug it, and plug it in again. If it never survives a reset, do not use `usb-reset` "
        "or `QUBES_USB_RESET` for it, and in dom0 run "
        "`qvm-service --disable BACKEND usb-reset-on-attach`.",
    ),
    "UP-304": (
        "another USB device took the place of {target}; try again",
        ("Somebody has just plugged in another device.",),
        "Look at `qvm-usb list` in dom0, and attach again.",
    ),
    "UP-305": (
        "USB device {device} left the bus during the attach, and has not come back "
        "({seconds:.0f} s); attach it when 'qvm-usb list' shows it again",
        (
            "Somebody unplugged it.",
            "It is a phone that restarted itself and has not finished.",
        ),
        "Wait until `qvm-usb list` in dom0 shows it again, or plug it in again. Then attach it.",
    ),
    "UP-306": (
        "USB device {device} left the bus during the attach, and another one took its place; "
        "'qvm-usb list' shows it",
        ("The device restarted as another one: a phone, for example, as its bootloader.",),
        "A device that nobody asked for is never attached. Attach the new device if it is the one "
        "that you want. `sudo journalctl -t qubes-usb-proxy` in the qube with the controllers says "
        "what it is.",
    ),
    "UP-307": (
        "USB device {device} left the bus during the attach, and came back at another speed: "
        "attach {peer}",
        (
            "A socket has two ports, for USB 2 and for USB 3, and the device came back at the "
            "other.",
        ),
        "dom0's policy allows only the first port. Attach the device under its new name: "
        "`qvm-usb attach QUBE BACKEND:PEER`. If the name changes each time, use another cable or "
        "socket.",
    ),
    "UP-308": (
        "USB device {device} leaves the bus again and again; "
        "unplug it, plug it in again and try once more",
        (
            "It does not stay even when nothing uses it.",
            "Something in the qube with the controllers, such as `adb`, configures it each time.",
        ),
        "Stop what uses it in the qube with the controllers, for example with `adb kill-server`. "
        "Then plug it in again.",
    ),
    "UP-309": (
        "USB device {device} left the bus when it was set up in the other qube; attach it again",
        ("The device restarts when it is configured a second time, as some devices do.",),
        "Attach it again: `qvm-usb attach QUBE BACKEND:DEVICE`. The program has remembered this "
        "device, and waits for it the next time.",
    ),
    "UP-310": (
        "a udev rule in this qube forbids lending USB device {device}; "
        "remove the rule to attach it",
        ("A udev rule of the qube with the controllers sets `QUBES_EXPORT_USB_DEVICE=0` for it.",),
        "`grep -r QUBES_EXPORT_USB_DEVICE /etc/udev /usr/lib/udev` in that qube finds the rule. To "
        "attach the device, remove the rule from the template of that qube.",
    ),
    "UP-401": (
        "USB device {device} is attached already; detach it first",
        ("A qube has it.",),
        "`qvm-usb list` in dom0 shows which qube. `qvm-usb detach QUBE BACKEND:DEVICE` takes the "
        "device back from it.",
    ),
    "UP-402": (
        "another program has exported USB device {device}; detach it",
        ("Somebody uses USB/IP in this qube by hand.",),
        "Stop that program, or take the device back with `sudo qubes-usb-proxy detach DEVICE` in "
        "this qube.",
    ),
    "UP-403": (
        "this device is attached to this qube already; detach it first to attach it again",
        ("An earlier attach has not ended, so the device can be used in this qube.",),
        "If the device works, do nothing. Otherwise run `qvm-usb detach QUBE BACKEND:DEVICE` in "
        "dom0, and attach it again.",
    ),
    "UP-404": (
        "another driver of this qube holds USB device {device}; "
        "unplug it, plug it in again and try once more",
        ("A driver of the qube with the controllers does not release it.",),
        "Stop what uses it there, or plug it in again. `sudo journalctl -k -g usb` in that qube "
        "names the driver.",
    ),
    "UP-405": (
        "all {total} {speed} USB ports of this qube are in use; detach a device first",
        ("The kernel has a fixed number of virtual ports for each kind of device.",),
        "`qubes-usb-proxy status` in this qube shows what it has. Detach a device from this qube, "
        "or use another qube.",
    ),
    "UP-406": (
        "another program of this qube has claimed the port of USB device {device}; end it",
        (
            "A program in the qube with the controllers, such as a virtual machine, reserves the "
            "port.",
        ),
        "`sudo fuser -v /dev/bus/usb/*/*` in that qube shows the programs that use USB devices. "
        "Stop the one that has the port.",
    ),
    "UP-410": (
        "USB device {device} is in use in the qube that it is plugged into; "
        "unmount it there and try again",
        (
            "A disk of the device is mounted there.",
            "The disk is mapped there, as encrypted disks are.",
            "The disk is used as swap there.",
            "The disk is part of an array there.",
            "Another qube has the disk by `qvm-block`.",
            "A loop device there is made of the disk.",
        ),
        "`sudo journalctl -t qubes-usb-proxy` in the qube with the controllers says what uses the "
        "disk. Unmount it there, because an attach could damage its data. The qube service "
        "`usb-proxy-lend-in-use` turns this check off.",
    ),
    "UP-420": (
        "this qube's kernel has not released this device since its last use; restart this qube",
        ("A device is broken, and the kernel of the qube waits for it.",),
        "Wait half a minute, and attach it again. If that does not help, restart that qube: "
        "`qvm-shutdown --wait QUBE && qvm-start QUBE` in dom0.",
    ),
    "UP-421": (
        "this device is being attached to this qube by another call; wait until that call ends",
        ("Two programs attach the same device at the same time.",),
        "`qvm-usb list` in dom0 shows whether it is attached by now.",
    ),
    "UP-422": (
        "USB device {device} is still being given back after its last use; "
        "wait half a minute and try again",
        ("The kernel of the qube with the controllers has not reset the device yet.",),
        "Attach it again after half a minute; `qubes-usb-proxy status` in that qube shows whether "
        "it is back. If that does not help, unplug the device and plug it in again.",
    ),
    "UP-423": (
        "USB device {device} is being attached by another call; wait until that call ends",
        (
            "Two calls attach the same device at the same time.",
            "The device leaves the bus when it is attached, as phones do, and returns late.",
        ),
        "`qvm-usb list` in dom0 shows whether it is attached by now, and to which qube. If it is "
        "not, attach it again.",
    ),
    "UP-501": (
        "{device} of {backend} is not attached to this qube; 'qvm-usb list' shows where it is",
        ("It was detached before.", "It was unplugged."),
        "`qvm-usb list` in dom0 shows where the device is. If no qube has it, there is nothing to "
        "do.",
    ),
    "UP-502": (
        "USB device {device} is not attached to any qube; see 'qvm-usb list' in dom0",
        ("It was detached before.", "It was unplugged."),
        "The device is free, so there is nothing to do. `qvm-usb list` in dom0 shows whether it is "
        "plugged in.",
    ),
}
