# SPDX-License-Identifier: GPL-2.0-or-later
"""UP-1: defects of this program. UP-2: requests that cannot be. UP-8: programs that were ended."""

ENTRIES = {
    "UP-101": (
        "internal error, please report it: {error} at {place}",
        ("This program met a case that nobody thought of: it has a defect.",),
        "Report the whole sentence. `qvm-usb-doctor --report` in dom0 prints what else helps, "
        "without names. The program has still cleaned up what was attached.",
    ),
    "UP-201": (
        "'{text}' is one interface of a device; only a whole device can be attached: "
        "name it without the colon, '{device}'",
        ("You named one function of a device: such a name has a colon, like `2-1:1.0`.",),
        "Leave out the colon and what follows it: `qvm-usb attach work sys-usb:2-1`.",
    ),
    "UP-202": (
        "'{text}' is a root hub; name a device behind it instead",
        ("You named a controller: names such as `usb1` are the controllers themselves.",),
        "`qvm-usb list` in dom0 shows the devices that you can name.",
    ),
    "UP-203": (
        "'{text}' names no USB device; use a bus id such as 2-1 or 1-1.4",
        (
            "The name is not the bus id of a device.",
            "You named vendor and product, such as `0x1234.0x5678`, to detach a device.",
        ),
        "Use the name that `qvm-usb list` in dom0 shows, without the qube in front of it.",
    ),
    "UP-204": (
        "'{text}' is not vendor and product; both are four hexadecimal digits: 0x1234.0x5678",
        ("The name starts with `0x`, but is not vendor and product with a dot between them.",),
        "Write all digits, including leading zeros. `qubes-usb-proxy status` in the qube with the "
        "controllers shows them.",
    ),
    "UP-205": (
        "'{text}' is not the name of a qube; it has 31 characters at most, a letter first, "
        "then letters, digits, '_', '-' and '.'",
        ("The first word of the request is not the name of a qube.",),
        "Write the qube where the device is plugged in, a space, and the device, such as `sys-usb "
        "2-1`. `qvm-usb list` in dom0 shows both.",
    ),
    "UP-206": (
        "{device} is a hub; name a device behind it instead",
        ("You named a hub, and hubs stay where they are plugged in.",),
        "Attach the devices behind it one by one. `qvm-usb list` in dom0 shows them.",
    ),
    "UP-207": (
        "{device} is itself attached here from another qube; "
        "do this in the qube that it is plugged into",
        ("The device came to this qube from another one over USB/IP, and cannot be passed on.",),
        "Name the qube where it is plugged in: `qubes-usb-proxy status` shows it. To attach the "
        "device to another qube, detach it here first.",
    ),
    "UP-208": (
        "{target} matches {devices}; name one by its bus id",
        ("Several devices with this vendor and product are plugged in.",),
        "Use one of the bus ids that the sentence lists. `qubes-usb-proxy status` in the qube "
        "with the controllers shows which is which.",
    ),
    "UP-209": (
        "QREXEC_REMOTE_DOMAIN is not set; this is run by qrexec for another qube, not by hand",
        ("Somebody started the program by hand.", "Something hides the environment from it."),
        "Attach with `qvm-usb attach QUBE BACKEND:DEVICE` in dom0. If you did so, reinstall the "
        "package in that qube.",
    ),
    "UP-210": (
        "no request on stdin within {seconds:.0f} s; write one line, such as 'sys-usb 2-1'",
        ("Somebody called the service without a request.",),
        "Pass it one line: `echo sys-usb 2-1 | qvm-run -p -u root --service work qubes.USBAttach`.",
    ),
    "UP-211": (
        "the request on stdin cannot be read: {reason}; write one line, such as 'sys-usb 2-1'",
        ("Somebody called the service with something on stdin that cannot be read.",),
        "Pass it one line: `echo sys-usb 2-1 | qvm-run -p -u root --service work qubes.USBAttach`.",
    ),
    "UP-212": (
        "the request on stdin is too long; write one line, such as 'sys-usb 2-1'",
        ("The request has more than the 200 characters that two names can have.",),
        "Pass it one line: `echo sys-usb 2-1 | qvm-run -p -u root --service work qubes.USBAttach`.",
    ),
    "UP-213": (
        "the request on stdin is not ASCII; write one line, such as 'sys-usb 2-1'",
        ("A name in it has characters that are not ASCII.",),
        "Write the names as `qvm-usb list` shows them.",
    ),
    "UP-214": (
        "stdin is not a stream socket; this is run by qrexec, not by hand",
        (
            "Somebody started the program by hand.",
            "An agent of qrexec that does not pass on its socket started it.",
        ),
        "Attach with `qvm-usb attach QUBE BACKEND:DEVICE` in dom0. If you did so, reinstall the "
        "package in that qube.",
    ),
    "UP-215": (
        "QREXEC_AGENT_PID is not a process; this is run by qrexec, not by hand",
        ("Somebody started the program by hand.", "Something hides the environment from it."),
        "Attach with `qvm-usb attach QUBE BACKEND:DEVICE` in dom0. If you did so, reinstall the "
        "package in that qube.",
    ),
    "UP-216": (
        "QREXEC_AGENT_PID {pid} is not the agent that started this; "
        "this is run by qrexec, not by hand",
        (
            "The environment names a process that did not start this one, so that process gets no "
            "signal.",
        ),
        "Attach with `qvm-usb attach QUBE BACKEND:DEVICE` in dom0. If you did so, restart that "
        "qube.",
    ),
    "UP-217": (
        "the request on stdin has to be 'BACKEND DEVICE', as in 'sys-usb 2-1'",
        ("Somebody called `qubes.USBAttach` with more or fewer than two words.",),
        "Pass it the qube where the device is plugged in, a space, and the device: `echo sys-usb "
        "2-1 | qvm-run -p -u root --service work qubes.USBAttach`.",
    ),
    "UP-218": (
        "the request on stdin has to be 'BACKEND DEVICE' where the device is attached, "
        "or its bus id where it is plugged in",
        (
            "Somebody called `qubes.USBDetach` with no word.",
            "Somebody called it with more than two words.",
        ),
        "Name the qube and the device to the qube that uses it: "
        "`echo sys-usb 2-1 | qvm-run -p -u root --service work qubes.USBDetach`. Or name only the "
        "device to the qube that it is plugged into: "
        "`echo 2-1 | qvm-run -p -u root --service sys-usb qubes.USBDetach`.",
    ),
    "UP-219": (
        "one argument is needed: the device, as in qubes.USB+2-1",
        ("Somebody called `qubes.USB` without a device.",),
        "Attach with `qvm-usb attach QUBE BACKEND:DEVICE` in dom0, or call `qubes.USB+2-1`.",
    ),
    "UP-220": (
        "usb-import is run by qubes.USBAttach, not by hand",
        ("Somebody started the program with arguments that differ from those of qubes.USBAttach.",),
        "Attach with `qvm-usb attach QUBE BACKEND:DEVICE` in dom0.",
    ),
    "UP-221": (
        "the state file has to be {path}; this is run by qubes.USBAttach, not by hand",
        ("Somebody started the program by hand with another file.",),
        "Attach with `qvm-usb attach QUBE BACKEND:DEVICE` in dom0.",
    ),
    "UP-222": (
        "the report FD has to be an open one above 2; this is run by qubes.USBAttach, not by hand",
        ("Somebody started the program by hand with another number.",),
        "Attach with `qvm-usb attach QUBE BACKEND:DEVICE` in dom0.",
    ),
    "UP-223": (
        "name one device, as in 'usb-reset 2-1' or 'usb-reset 0x1234.0x5678'",
        ("Somebody started the program with more or fewer than one argument.",),
        "Name one device, as in `/usr/lib/qubes/usb-reset 2-1`.",
    ),
    "UP-224": (
        "the first argument has to be the name of a program: {programs}",
        ("Somebody started the launcher in `/usr/lib/qubes/usb-proxy` by hand.",),
        "Start the programs in `/usr/lib/qubes` instead, such as `/usr/lib/qubes/usb-reset 2-1`.",
    ),
    "UP-225": (
        "a command is needed; 'qubes-usb-proxy help' lists the commands",
        ("Somebody started `qubes-usb-proxy` without a command.",),
        "Try `qubes-usb-proxy status`.",
    ),
    "UP-226": (
        "'{word}' is not a command; 'qubes-usb-proxy help' lists the commands",
        ("The first word after `qubes-usb-proxy` is not one of its commands.",),
        "Run `qubes-usb-proxy help`, and write the command before its options.",
    ),
    "UP-227": (
        "{command} has no option '{option}'; 'qubes-usb-proxy help {command}' shows what it has",
        ("The option belongs to another command.", "There is no such option."),
        "Leave out the option, or read `qubes-usb-proxy help COMMAND`.",
    ),
    "UP-228": (
        "{command} {what}; 'qubes-usb-proxy help {command}' shows how to use it",
        (
            "`detach` got no name of a device, but needs one.",
            "`detach` got more than one name.",
            "Another command got a name, but needs none.",
        ),
        "Write `qubes-usb-proxy detach 2-1` where the device is plugged in, and `qubes-usb-proxy "
        "detach sys-usb:2-1` where it is attached.",
    ),
    "UP-229": (
        "the second line of the request is wrong: '{text}'; write vendor, product and interfaces, "
        "such as '046d:0825 0e0100'",
        (
            "dom0 writes this line, and has another version of the program than the qube.",
            "Somebody called the service by hand, with a second line.",
        ),
        "Install the same version in dom0, with `sudo qubes-dom0-update qubes-usb-proxy-dom0`, "
        "and in the qube. By hand, leave the second line out.",
    ),
    "UP-230": (
        "it takes no argument, and detaches all devices of this qube; nothing was detached",
        ("Somebody started the program with an argument, such as `--help` or a device.",),
        "Leave out the argument, or detach one device: `qubes-usb-proxy detach 2-1`.",
    ),
    "UP-801": (
        "stopped by a signal before it was done; try again",
        (
            "Somebody detached the device before the program was done.",
            "The qube was shutting down.",
            "Somebody pressed Ctrl-C.",
        ),
        "If nobody meant to end it, try again: `qvm-usb attach QUBE BACKEND:DEVICE`. Nothing is "
        "left over.",
    ),
    "UP-802": (
        "killed by signal {signal}, so the device is given back; try again",
        (
            "Somebody killed the exporter in the qube with the controllers.",
            "The kernel there ran out of memory, and killed it.",
        ),
        "Try again; nothing is left over. If memory ran out, `sudo journalctl -k` there says so.",
    ),
    "UP-803": (
        "{device} of {backend} is not attached: usb-import was killed by signal {signal}; "
        "try again",
        (
            "Somebody killed the importer in the qube that asked.",
            "The kernel there ran out of memory, and killed it.",
        ),
        "Try again; nothing is left over. If memory ran out, `sudo journalctl -k` there says so.",
    ),
    "UP-804": (
        "all USB devices of this qube were detached during this attach; try again",
        (
            "The computer suspended while this attach waited.",
            "Somebody ran `usb-detach-all` while this attach waited.",
        ),
        "Attach the device again: `qvm-usb attach QUBE BACKEND:DEVICE`.",
    ),
    "UP-805": (
        "the computer is about to suspend; attach the device after resume",
        (
            "Before suspend, every qube detaches everything, and attaches nothing until it has "
            "resumed.",
        ),
        "Attach the device again after resume: `qvm-usb attach QUBE BACKEND:DEVICE`. If the qube "
        "does not notice the resume, the wait ends after two minutes.",
    ),
}
