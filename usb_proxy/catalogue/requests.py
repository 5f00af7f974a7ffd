# SPDX-License-Identifier: GPL-2.0-or-later
"""UP-1: defects of this program. UP-2: requests that cannot be. UP-8: programs that were ended."""

ENTRIES = {
    "UP-101": (
        "internal error, please report it: {error} at {place}",
        "A defect of this program: it met something that nobody thought of.",
        "Report the whole sentence. What was attached is cleaned up all the same.",
    ),
    "UP-201": (
        "'{text}' is one interface of a device; only a whole device can be attached: "
        "name it without the colon, '{device}'",
        "A name with a colon, such as `2-1:1.0`, is one function of a device.",
        "Leave away the colon and what follows it.",
    ),
    "UP-202": (
        "'{text}' is a root hub; name a device behind it instead",
        "`usb1` and the like are the controllers themselves.",
        "`qvm-usb list` in dom0 shows the devices that can be named.",
    ),
    "UP-203": (
        "'{text}' names no USB device; use a bus id such as 2-1 or 1-1.4, "
        "or vendor and product such as 0x1234.0x5678",
        "The name is neither a bus id nor vendor and product.",
        "Take the name from `qvm-usb list` in dom0, without the qube before it.",
    ),
    "UP-204": (
        "'{text}' is no vendor and product; both are four hexadecimal digits: 0x1234.0x5678",
        "A name that starts with `0x` has to be vendor and product, with a dot between them.",
        "Write all digits, also zeros in front.",
    ),
    "UP-205": (
        "'{text}' is no name of a qube; it has 31 characters at most, a letter first, "
        "then letters, digits, '_', '-' and '.'",
        "The first word of the request has to be the qube where the device is plugged in.",
        "Write `sys-usb 2-1`, with a blank between the two.",
    ),
    "UP-206": (
        "{device} is a hub; name a device behind it instead",
        "Hubs stay where they are plugged in: their devices can be attached one by one.",
        "`qvm-usb list` in dom0 shows the devices behind it.",
    ),
    "UP-207": (
        "{device} is itself attached here from another qube; "
        "do this in the qube that it is plugged into",
        "The device came to this qube over USB/IP, and does not go further.",
        "Name the qube where it is plugged in. Detach it here first, to attach it elsewhere.",
    ),
    "UP-208": (
        "{target} matches {devices}; name one by its bus id",
        "Several devices with this vendor and product are plugged in.",
        "Use one of the bus ids that the sentence lists.",
    ),
    "UP-209": (
        "QREXEC_REMOTE_DOMAIN is not set; this is run by qrexec for another qube, not by hand",
        "The program was started by hand, or by something that hides the environment.",
        "Attach with `qvm-usb` in dom0. If you did: reinstall the package in that qube.",
    ),
    "UP-210": (
        "no request on stdin within {seconds:.0f} s; write one line, such as 'sys-usb 2-1'",
        "The service was called, and told nothing.",
        "Give it a line: `echo sys-usb 2-1 | qvm-run -p -u root --service work qubes.USBAttach`.",
    ),
    "UP-211": (
        "the request on stdin cannot be read: {reason}; write one line, such as 'sys-usb 2-1'",
        "The service was called with something on stdin that cannot be read.",
        "Give it a line through a pipe.",
    ),
    "UP-212": (
        "the request on stdin is too long; write one line, such as 'sys-usb 2-1'",
        "A request is two names, and 200 characters at most.",
        "Give it one line with a backend and a device.",
    ),
    "UP-213": (
        "the request on stdin is not ASCII; write one line, such as 'sys-usb 2-1'",
        "Names of qubes and devices have no other characters.",
        "Write the names as `qvm-usb list` does.",
    ),
    "UP-214": (
        "stdin is no stream socket; this is run by qrexec, not by hand",
        "The program was started by hand, or by an agent that does not give it its socket.",
        "Attach with `qvm-usb` in dom0. If you did: reinstall the package in that qube.",
    ),
    "UP-215": (
        "QREXEC_AGENT_PID is no process; this is run by qrexec, not by hand",
        "The program was started by hand, or by something that hides the environment.",
        "Attach with `qvm-usb` in dom0. If you did: reinstall the package in that qube.",
    ),
    "UP-216": (
        "QREXEC_AGENT_PID {pid} is not the agent that started this; "
        "this is run by qrexec, not by hand",
        "The environment names a process that this one does not come from, so it gets no signal.",
        "Attach with `qvm-usb` in dom0. If you did: restart that qube.",
    ),
    "UP-217": (
        "the request on stdin has to be 'BACKEND DEVICE', as in 'sys-usb 2-1'",
        "`qubes.USBAttach` was called with more or fewer than two words.",
        "Give it the qube where the device is plugged in and the device, with a blank between.",
    ),
    "UP-218": (
        "the request on stdin has to be 'BACKEND DEVICE' where the device is attached, "
        "or its bus id where it is plugged in",
        "`qubes.USBDetach` was called with no word, or with more than two.",
        "Give it `sys-usb 2-1` in the qube that uses the device, or `2-1` in `sys-usb`.",
    ),
    "UP-219": (
        "one argument is needed: the device, as in qubes.USB+2-1",
        "`qubes.USB` was called without the device that it is for.",
        "Attach with `qvm-usb` in dom0, or call `qubes.USB+2-1`.",
    ),
    "UP-220": (
        "usb-import is run by qubes.USBAttach, not by hand",
        "The program was started with other arguments than qubes.USBAttach gives it.",
        "Attach with `qvm-usb` in dom0.",
    ),
    "UP-221": (
        "the state file has to be {path}; this is run by qubes.USBAttach, not by hand",
        "The program was started by hand with another file.",
        "Attach with `qvm-usb` in dom0.",
    ),
    "UP-222": (
        "the report FD has to be an open one above 2; this is run by qubes.USBAttach, not by hand",
        "The program was started by hand with another number.",
        "Attach with `qvm-usb` in dom0.",
    ),
    "UP-223": (
        "usage: usb-reset BUSID, or usb-reset 0xVVVV.0xPPPP",
        "The program was started with more or fewer than one argument.",
        "Name one device, as in `/usr/lib/qubes/usb-reset 2-1`.",
    ),
    "UP-224": (
        "launch: the first argument has to be one of {programs}",
        "The launcher in `/usr/lib/qubes-usb-proxy` was started by hand.",
        "Start the programs in `/usr/lib/qubes` instead.",
    ),
    "UP-225": (
        "a command is needed; 'qubes-usb-proxy help' shows those that there are",
        "`qubes-usb-proxy` was started without a word.",
        "Try `qubes-usb-proxy status`.",
    ),
    "UP-226": (
        "'{word}' is no command; 'qubes-usb-proxy help' shows those that there are",
        "The first word after `qubes-usb-proxy` is not one of its commands.",
        "Look at `qubes-usb-proxy help`, and write the command before its options.",
    ),
    "UP-227": (
        "{command} has no option '{option}'; 'qubes-usb-proxy help {command}' shows what it has",
        "Each command of `qubes-usb-proxy` has options of its own.",
        "Leave the option away, or look at the help.",
    ),
    "UP-228": (
        "{command} {what}; 'qubes-usb-proxy help {command}' shows how to use it",
        "`detach` needs the name of one device, and no other command needs any.",
        "Write `qubes-usb-proxy detach 2-1` where the device is plugged in, and "
        "`qubes-usb-proxy detach sys-usb:2-1` where it is attached.",
    ),
    "UP-801": (
        "stopped by a signal before it was done; try again",
        "Somebody ended the program while it worked: a detach, a shutdown, or Ctrl-C.",
        "Try again if it was not meant to be ended. Nothing is left over.",
    ),
    "UP-802": (
        "killed by signal {signal}, so the device is given back; try again",
        "Somebody, or a kernel without memory, killed the exporter in the qube with the device.",
        "Try again; nothing is left over. `journalctl -k` there tells of a lack of memory.",
    ),
    "UP-803": (
        "{device} of {backend} is not attached: usb-import was killed by signal {signal}; "
        "try again",
        "Somebody, or a kernel without memory, killed the importer in the qube that asked.",
        "Try again; nothing is left over. `journalctl -k` there tells of a lack of memory.",
    ),
}
