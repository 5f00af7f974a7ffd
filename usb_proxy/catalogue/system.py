# SPDX-License-Identifier: GPL-2.0-or-later
"""UP-7: this qube lacks something: a module, QubesDB, root, room."""

ENTRIES = {
    "UP-701": (
        "the command {command} is not installed; install the package that has it",
        "The qube's template is not one of Qubes, or lacks a package.",
        "`modprobe` is in the package kmod, `qubesdb-read` and its like are in qubesdb-vm or "
        "qubes-db-vm, `qrexec-client-vm` is in qubes-core-qrexec.",
    ),
    "UP-702": (
        "{command} did not start: {reason}; reinstall the package that has it",
        "The command is there, but the kernel does not run it: damaged, or no memory.",
        "Reinstall its package in the template, or give the qube more memory.",
    ),
    "UP-703": (
        "{command} has not ended after {seconds:.0f} s; try again, or restart this qube",
        "The qube is overloaded, or what the command talks to hangs.",
        "Try again; restart the qube if it happens again.",
    ),
    "UP-704": (
        "the kernel module {module} cannot be loaded ({said}); "
        "use a kernel with USB/IP, or install the package with its extra modules",
        "The kernel of this qube has no USB/IP.",
        "Kernels that Qubes provides have it; a distribution's own may have it in another package "
        "(`linux-modules-extra` or the like).",
    ),
    "UP-705": (
        "the kernel module vhci-hcd is not loaded; run: modprobe vhci-hcd",
        "It was removed while it was needed.",
        "Load it, or restart the qube, and attach again.",
    ),
    "UP-706": (
        "controller vhci_hcd.{controller} has no root hub for {half}; restart this qube",
        "The kernel module vhci-hcd did not start well, often for want of memory.",
        "Restart the qube, with more memory if it has little.",
    ),
    "UP-707": (
        "this needs root: /etc/qubes/rpc-config/qubes.USB has to say force-user='root', "
        "or dom0's policy user=root",
        "The file is missing or was changed, or the program was started by hand as a user.",
        "By hand: use `sudo` or `pkexec`. Else reinstall the package. Where `sudo` is installed it "
        "stands in, if `/etc/sudoers.d/qubes-usb-proxy` and the group `qubes` are as they should "
        "be.",
    ),
    "UP-708": (
        "only root may {tried} USB device {device}; run this as root",
        "The program runs as a user, or something takes root's rights away.",
        "Use `sudo` or `pkexec`, or reinstall the package.",
    ),
    "UP-709": (
        "/proc is not mounted; this qube is broken, restart it",
        "The qube did not start well, or somebody unmounted `/proc`.",
        "Restart the qube.",
    ),
    "UP-710": (
        "{command} failed ({said}), so dom0 cannot see what is attached; "
        "restart qubes-db in this qube, or the qube",
        "QubesDB of this qube does not answer.",
        "`systemctl restart qubes-db` in this qube, or restart it.",
    ),
    "UP-711": (
        "usbip-host cannot take {device}: it has 16 devices, which is all that it can have; "
        "detach one first, or restart this qube if nothing is attached",
        "That many can be attached at once from one qube.",
        "Detach a device, or move a controller to another qube.",
    ),
    "UP-712": (
        "usbip-host did not {tried} {device}: {reason}; "
        "unplug the device, plug it in again and try once more",
        "The kernel of the qube with the controllers refused, for the reason that is told.",
        "Plug the device in again; that qube's kernel log may tell more.",
    ),
    "UP-713": (
        "vhci-hcd did not detach port {port}: {reason}; run this as root, or restart this qube",
        "The kernel of the qube with the device does not let go of it.",
        "Restart the qube.",
    ),
    "UP-714": (
        "the kernel does not let go of {attachment} at port {port}; restart this qube",
        "The frontend's kernel hangs over a broken device.",
        "Restart that qube. The device can be attached elsewhere before that.",
    ),
    "UP-715": (
        "the process that holds the device does not end, so the kernel keeps it; restart this qube",
        "The kernel of this qube hangs over a broken device.",
        "Restart the qube.",
    ),
    "UP-716": (
        "cannot use {path}: {reason}; this needs root and a writable /run",
        "The program runs as a user, or `/run` is full or was made read-only.",
        "Use `sudo` or `pkexec`; make room in `/run`.",
    ),
    "UP-717": (
        "cannot write {path}: {reason}; make room in /run",
        "`/run` is full or was made read-only.",
        "Make room in `/run`, or restart the qube.",
    ),
    "UP-718": (
        "cannot remove {path}: {reason}; see that /run can be written",
        "`/run` was made read-only, or something else is in the file's place.",
        "Remove it as root, or restart the qube.",
    ),
    "UP-719": (
        "usbguard does not allow USB device {device} ({said}); run: usbguard allow-device '{rule}'",
        "In the qube with the controllers usbguard is installed, and its rules block the device.",
        "Run the command that the sentence names, in that qube.",
    ),
    "UP-720": (
        "cannot look into {path}: {reason}; run as root: chmod 0755 {path}",
        "The folder was made with other rights, or something else is in its place.",
        "Run the command that the sentence names.",
    ),
    "UP-721": (
        "this needs root, and pkexec is not installed; run: sudo {command}",
        "The command changes what is attached, and was run by a user.",
        "Run it as root. With the package `pkexec` (Debian) or `polkit` it asks for the "
        "administrator by itself.",
    ),
    "UP-722": (
        "polkit does not let this user do that; run: sudo {command}",
        "Nobody could be asked for the administrator's password, or it was not given.",
        "Run it as root, or in a terminal or a session with a polkit agent.",
    ),
    "UP-723": (
        "this qube has no more of what every program needs ({reason}); "
        "end some programs, make room in /run, or restart the qube",
        "Memory, open files, or the space in /run is used up, in the whole qube or for whoever "
        "started this.",
        "End what uses it; `free -m`, `df /run` and `ls /run` tell. Or restart the qube.",
    ),
    "UP-730": (
        "the kernel's list of USB ports has an unknown line '{line}'; "
        "use a kernel that Qubes provides",
        "The kernel module vhci-hcd of this qube is newer than this program, or was changed.",
        "Choose another kernel for the qube, or update this package.",
    ),
}
