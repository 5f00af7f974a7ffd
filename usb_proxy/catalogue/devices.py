# SPDX-License-Identifier: GPL-2.0-or-later
"""UP-3: the device is not there. UP-4: it, or what it needs, is taken. UP-5: it is not attached."""

ENTRIES = {
    "UP-301": (
        "no USB device {target} is plugged in; 'qvm-usb list' shows those that are",
        "It is gone, or in another port.",
        "`qvm-usb list` in dom0 shows what there is.",
    ),
    "UP-302": (
        "USB device {device} went away ({reason}); plug it in again",
        "It was unplugged while something was done with it, lost power, or restarted by itself.",
        "Plug it in again. If it does so each time: another cable, or a port with more power.",
    ),
    "UP-303": (
        "USB device {device} did not survive its reset: {reason}; unplug it and plug it in again",
        "It became another device or died.",
        "Unplug it, plug it in again. If it never survives a reset, do without `usb-reset`, "
        "`usb-reset-on-attach` and `QUBES_USB_RESET`.",
    ),
    "UP-304": (
        "another USB device took the place of {target}; try again",
        "Somebody plugged in another device just now.",
        "Look at `qvm-usb list` in dom0, and attach again.",
    ),
    "UP-305": (
        "USB device {device} left the bus when it was to be attached, and has not come back "
        "({seconds:.0f} s); plug it in again",
        "It was unplugged, or it is a phone that restarted itself and has not finished.",
        "Wait until `qvm-usb list` in dom0 shows it again, or plug it in again; then attach it.",
    ),
    "UP-306": (
        "USB device {device} left the bus when it was to be attached, and another one came in its "
        "place: {other}; 'qvm-usb list' shows it",
        "A device may restart as another one, such as a phone as its bootloader. What was not "
        "asked for is never attached.",
        "Attach it by itself, if it is the one that you want.",
    ),
    "UP-307": (
        "USB device {device} left the bus when it was to be attached, and came back at another "
        "speed: attach {peer}",
        "A socket has two ports, one for USB 2 and one for USB 3. The device used the other one "
        "when it came back; what dom0's policy allows is the first alone.",
        "Attach it under its new name. If it changes each time: another cable or socket.",
    ),
    "UP-308": (
        "USB device {device} leaves the bus again and again; "
        "unplug it, plug it in again and try once more",
        "It does not stay when it is left alone, or something in the qube with the controllers "
        "configures it each time.",
        "Stop what uses it in that qube, such as `adb`, and plug it in again.",
    ),
    "UP-309": (
        "USB device {device} left the bus when it was set up in the other qube; attach it again",
        "Some devices restart when they are configured a second time. This is now known of it, and "
        "it is waited for the next time.",
        "Attach it again.",
    ),
    "UP-401": (
        "USB device {device} is attached already; detach it first",
        "Some qube has it.",
        "`qvm-usb list` in dom0 shows which; `qvm-usb detach` takes it from there.",
    ),
    "UP-402": (
        "another program has exported USB device {device}; detach it",
        "Somebody uses USB/IP in this qube by hand.",
        "End that, or call `qubes.USBDetach` in this qube, which takes the device from them.",
    ),
    "UP-403": (
        "this device is attached to this qube already; detach it first to attach it anew",
        "The same attachment is alive, or about to end.",
        "There is nothing to do, or `qvm-usb detach` it and attach it again.",
    ),
    "UP-404": (
        "another driver of this qube holds USB device {device}; "
        "unplug it, plug it in again and try once more",
        "A driver of the qube with the controllers does not let go of it.",
        "Stop what uses it there, or plug it in again; that qube's kernel log tells of the driver.",
    ),
    "UP-405": (
        "all {total} {speed} USB ports of this qube are in use; detach a device first",
        "The kernel has a fixed number of virtual ports for each kind of device.",
        "Detach a device from this qube, or use another qube.",
    ),
    "UP-406": (
        "another program of this qube has claimed the port of USB device {device}; end it",
        "A program in the qube with the controllers, such as a virtual machine, reserves the port.",
        "End it.",
    ),
    "UP-501": (
        "{device} of {backend} is not attached to this qube; 'qvm-usb list' shows where it is",
        "It was detached before, or unplugged.",
        "There is nothing to do. `qvm-usb list` in dom0 shows where it is.",
    ),
    "UP-502": (
        "USB device {device} is not attached to any qube; 'qvm-usb list' shows those that are",
        "It was detached before, or unplugged.",
        "There is nothing to do.",
    ),
}
