# SPDX-License-Identifier: GPL-2.0-or-later
"""UP-7: this qube lacks something: a module, QubesDB, root, room."""

ENTRIES = {
    "UP-701": (
        "the command {command} is not installed; install the package that has it",
        ("The qube's template is not from Qubes.", "The template lacks a package."),
        "Install the package in the template, for example with `sudo apt install kmod`. "
        "`modprobe` is in kmod, `qubesdb-read` and similar commands are in qubesdb-vm or "
        "qubes-db-vm, and `qrexec-client-vm` is in qubes-core-qrexec.",
    ),
    "UP-702": (
        "{command} did not start: {reason}; reinstall the package that has it",
        (
            "The program of that name is damaged, so the kernel cannot run it.",
            "Memory has run out.",
        ),
        "Reinstall its package in the template, or give the qube more memory: `qvm-prefs QUBE "
        "memory 600` in dom0.",
    ),
    "UP-703": (
        "{command} has not ended after {seconds:.0f} s; try again, or restart this qube",
        ("The qube is overloaded.", "The service that the command talks to hangs."),
        "Try again. If this repeats, restart the qube: `qvm-shutdown --wait QUBE && qvm-start "
        "QUBE` in dom0.",
    ),
    "UP-704": (
        "the kernel module {module} cannot be loaded ({said}); "
        "use a kernel with USB/IP, or see: sudo qubes-usb-proxy doctor",
        (
            "The kernel of this qube has no USB/IP.",
            "A file in `/etc/modprobe.d` keeps the module from being loaded.",
            "This qube was told to load no more modules.",
            "`nousb` or `module_blacklist` on the kernel's command line turns USB off.",
        ),
        "`sudo qubes-usb-proxy doctor` in that qube says which, and names a command. Use a kernel "
        "that Qubes provides, which has it: `qvm-prefs --default QUBE kernel` in dom0. A "
        "distribution's own kernel may have it in another package, such as `linux-modules-extra`.",
    ),
    "UP-705": (
        "the kernel module vhci-hcd is not loaded, or not at work; "
        "run: sudo modprobe -r vhci-hcd; sudo modprobe vhci-hcd",
        ("Somebody removed it while it was needed.", "It was short of memory when it was loaded."),
        "Run `sudo modprobe -r vhci-hcd; sudo modprobe vhci-hcd` in that qube, or restart it. Then "
        "attach the device again.",
    ),
    "UP-706": (
        "controller vhci_hcd.{controller} has no root hub that works for {half}; restart this qube",
        ("The kernel module vhci-hcd did not start well, often because memory ran out.",),
        "Restart the qube: `qvm-shutdown --wait QUBE && qvm-start QUBE` in dom0. If it has little "
        "memory, give it more: `qvm-prefs QUBE memory 600`.",
    ),
    "UP-707": (
        "this needs root: /etc/qubes/rpc-config/{service} has to say force-user='root', "
        "or dom0's policy user=root",
        (
            "The file is missing.",
            "The file was changed.",
            "Somebody started the program by hand as a user.",
        ),
        "If you started it by hand, use `sudo` or `pkexec`. Otherwise `sudo qubes-usb-proxy "
        "doctor` in the qube with the controllers names the command that writes the file again. "
        "Reinstall the package if that finds nothing.",
    ),
    "UP-708": (
        "only root may {tried} USB device {device}; run this as root",
        ("The program runs as a user.", "Something has removed root's rights."),
        "Use `sudo` or `pkexec`, as in `sudo /usr/lib/qubes/usb-reset 2-1`, or reinstall the "
        "package.",
    ),
    "UP-709": (
        "/proc is not mounted; this qube is broken, restart it",
        ("The qube did not start well.", "Somebody unmounted `/proc`."),
        "Restart the qube: `qvm-shutdown --wait QUBE && qvm-start QUBE` in dom0.",
    ),
    "UP-710": (
        "{command} failed ({said}), so dom0 cannot see what is attached; "
        "restart qubes-db in this qube, or the qube",
        ("QubesDB of this qube does not answer.",),
        "Run `sudo systemctl restart qubes-db` in this qube, or restart the qube.",
    ),
    "UP-711": (
        "usbip-host already has 16 devices, its limit, and cannot take {device}; "
        "detach one first, or restart this qube if nothing is attached",
        ("No more devices than that can be attached from one qube at once.",),
        "`qubes-usb-proxy status` in that qube shows which qubes have them. Detach a device, or "
        "move a controller to another qube.",
    ),
    "UP-712": (
        "this qube's kernel did not {tried} {device}: {reason}; "
        "unplug the device, plug it in again and try once more",
        ("The kernel of the qube with the controllers refused, for the reason in the sentence.",),
        "Plug the device in again. `sudo journalctl -k -g usb` in that qube may say more.",
    ),
    "UP-713": (
        "vhci-hcd did not detach port {port}: {reason}; run this as root, or restart this qube",
        ("The kernel of the qube that uses the device does not release it.",),
        "Restart the qube: `qvm-shutdown --wait QUBE && qvm-start QUBE` in dom0.",
    ),
    "UP-714": (
        "the kernel does not release {attachment} at port {port}; restart this qube",
        ("The kernel of the qube that uses the device hangs because of a broken device.",),
        "Restart that qube: `qvm-shutdown --wait QUBE && qvm-start QUBE` in dom0. You can attach "
        "the device to another qube before that.",
    ),
    "UP-715": (
        "the process that holds the device does not end, so the kernel keeps it; restart this qube",
        ("The kernel of this qube hangs because of a broken device.",),
        "Restart the qube: `qvm-shutdown --wait QUBE && qvm-start QUBE` in dom0.",
    ),
    "UP-716": (
        "cannot use {path}: {reason}; this needs root and a writable /run",
        ("The program runs as a user.", "`/run` is full.", "`/run` was made read-only."),
        "Use `sudo` or `pkexec`. `df /run` shows whether `/run` is full: make room there.",
    ),
    "UP-717": (
        "cannot write {path}: {reason}; make room in /run",
        ("`/run` is full.", "`/run` was made read-only."),
        "`df /run` shows whether it is full: make room there. Or restart the qube.",
    ),
    "UP-718": (
        "cannot remove {path}: {reason}; make sure that /run can be written",
        ("`/run` was made read-only.", "Something else is in the place of the file."),
        "Remove it with `sudo rm -r PATH`, or restart the qube.",
    ),
    "UP-720": (
        "cannot look into {path}: {reason}; run as root: chmod 0755 {path}",
        ("The folder was made with other rights.", "Something else is in its place."),
        "Run the command that the sentence names: `sudo chmod 0755 PATH`.",
    ),
    "UP-721": (
        "this needs root, and pkexec is not installed; run: sudo {command}",
        ("The command changes what is attached, and a user who is not root ran it.",),
        "Run it as root: `sudo COMMAND`. With the package `pkexec` (Debian) or `polkit`, it asks "
        "for the administrator's password.",
    ),
    "UP-722": (
        "polkit does not let this user do that; run: sudo {command}",
        ("Nobody could be asked for the administrator's password.", "The password was not given."),
        "Run it as root with `sudo COMMAND`, or in a terminal or a session with a polkit agent.",
    ),
    "UP-723": (
        "this qube has run out of something that every program needs ({reason}); "
        "end some programs, make room in /run, or restart the qube",
        (
            "Memory is used up, in the whole qube or for the user who started this.",
            "Too many files are open there.",
            "The space in `/run` is used up.",
        ),
        "Look with `free -m`, `df /run` and `ls /run`, and end what uses it. Or restart the qube.",
    ),
    "UP-730": (
        "the kernel's list of USB ports has an unknown line '{line}'; "
        "use a kernel that Qubes provides",
        (
            "The kernel module vhci-hcd of this qube is newer than this program.",
            "That module was changed.",
        ),
        "Choose a kernel of Qubes for the qube, with `qvm-prefs --default QUBE kernel` in dom0, "
        "or update this package.",
    ),
    "UP-740": (
        "/etc/qubes/rpc-config/qubes.USB was changed where the device is plugged in, so the "
        "service does not run as root; restore it: "
        "echo \"force-user='root'\" > /etc/qubes/rpc-config/qubes.USB",
        (
            "That file was changed, so the service runs as an ordinary user, who cannot lend a "
            "device.",
        ),
        "As root in the template of the qube with the controllers, run `echo "
        "\"force-user='root'\" > /etc/qubes/rpc-config/qubes.USB`, or reinstall the package "
        "there. Then restart the qube.",
    ),
    "UP-750": (
        "usbguard of this qube does not allow USB device {product}; "
        "run: sudo usbguard append-rule 'allow id {product}'",
        ("The usbguard of the qube that gets the device blocks it.", "That usbguard does not run."),
        "Run `sudo usbguard append-rule 'allow id PRODUCT'` in that qube, as the sentence says, "
        "and attach again. If usbguard does not answer: `sudo systemctl start usbguard`.",
    ),
    "UP-751": (
        "this qube's kernel does not authorize USB device {product}; "
        "run: echo 1 | sudo tee /sys/devices/platform/vhci_hcd.*/usb*/authorized_default",
        (
            "`usbcore.authorized_default=0` on the kernel's command line turns new devices off "
            "there.",
            "A program that was removed, such as usbguard, has left new devices off.",
            "A program that was stopped has left them off.",
        ),
        "In that qube, run `echo 1 | sudo tee "
        "/sys/devices/platform/vhci_hcd.*/usb*/authorized_default`, as the sentence says, and "
        "attach again.",
    ),
    "UP-752": (
        "this qube's kernel has not configured USB device {product}; "
        "see: sudo journalctl -k -g usb",
        ("The device refused its configuration.", "The device wants more power than a port gives."),
        "Plug it in again, and try once more. `sudo journalctl -k -g usb` in the qube that gets "
        "it says more.",
    ),
    "UP-753": (
        "this qube has no room for another connection; detach another device first",
        (
            "Each attached device shares memory with the other qube, and the kernel limits how "
            "much.",
        ),
        "Detach a device, or end other programs that call qubes. Or raise the limit: `echo 4096 | "
        "sudo tee /sys/module/xen_gntalloc/parameters/limit`.",
    ),
    "UP-755": (
        "another program holds the lock of bus {bus}; try again",
        ("Several devices are attached at once, and the kernel is slow to give one a driver.",),
        "Try again. If it repeats, restart this qube: `qvm-shutdown --wait QUBE && qvm-start "
        "QUBE` in dom0.",
    ),
    "UP-756": (
        "the kernel's {path} cannot be used: {reason}; restart this qube with a kernel of Qubes",
        ("The kernel of this qube does not let interfaces be authorized.",),
        "Use a kernel that Qubes provides: `qvm-prefs --default QUBE kernel` in dom0. Or allow "
        "every interface: `qvm-service --enable QUBE usb-proxy-any-interface`.",
    ),
    "UP-757": (
        "this qube does not authorize its own virtual hub {hub}, so no device arrives; "
        "run: echo 1 | sudo tee /sys/bus/usb/devices/{hub}/authorized",
        ("The usbguard of the qube that gets the device blocks hubs.", "Somebody blocked the hub."),
        "Run the command in that qube, and attach again. To allow its hubs for good where usbguard "
        "runs: `sudo usbguard append-rule 'allow with-interface 09:00:00'`.",
    ),
    "UP-758": (
        "usbguard of this qube rejects USB device {product}; "
        "run: sudo usbguard append-rule 'allow id {product}'",
        (
            "A rule of usbguard removes the device as soon as it is there.",
            "That usbguard removes every device that no rule allows.",
        ),
        "Run `sudo usbguard append-rule 'allow id PRODUCT'` in the qube that gets the device, and "
        "attach again. `lsusb` in the qube with the controllers shows vendor and product. "
        "`sudo usbguard list-rules` shows the rule that rejects it.",
    ),
    "UP-759": (
        "a program of this qube has removed USB device {product} as soon as it was there; "
        "see: sudo journalctl -e",
        ("A program in the qube that gets the device decides which devices it may have.",),
        "`sudo journalctl -e` in that qube may name the program. Let it allow the device, and "
        "attach again.",
    ),
    "UP-760": (
        "cannot use {path}: {reason}; try again, and run: sudo qubes-usb-proxy doctor",
        (
            "A file, a folder or a device of this qube is missing.",
            "Something else is in its place.",
            "It has just disappeared.",
        ),
        "Try again. `sudo qubes-usb-proxy doctor` checks what an attach needs.",
    ),
    "UP-761": (
        "this qube's kernel keeps drivers from all interfaces of USB device {product}; "
        "run: echo 1 | sudo tee /sys/devices/platform/vhci_hcd.*/usb*/interface_authorized_default",
        ("Somebody has turned off the interfaces of new devices in the qube that gets it.",),
        "Run `echo 1 | sudo tee /sys/devices/platform/vhci_hcd.*/usb*/interface_authorized_default"
        "` in that qube, and attach again.",
    ),
    "UP-762": (
        "this qube's kernel gives no USB device a driver by itself; "
        "run: echo 1 | sudo tee /sys/bus/usb/drivers_autoprobe",
        ("Somebody has turned off drivers in the qube that gets the device.",),
        "Run `echo 1 | sudo tee /sys/bus/usb/drivers_autoprobe` in that qube, and attach again.",
    ),
    "UP-763": (
        "this qube's kernel takes no new USB devices; "
        "run: echo 0 | sudo tee /proc/sys/kernel/deny_new_usb",
        ("Somebody has turned off new USB devices in the qube that gets the device.",),
        "Run `echo 0 | sudo tee /proc/sys/kernel/deny_new_usb` in that qube, and attach again.",
    ),
    "UP-764": (
        "this qube's /sys is read-only; run: sudo mount -o remount,rw /sys",
        ("It was mounted like that.", "Settings of systemd keep services from writing there."),
        "Run `sudo mount -o remount,rw /sys` in that qube. There, `systemctl show -p "
        "ProtectKernelTunables qubes-qrexec-agent` should say `no`.",
    ),
    "UP-780": (
        "qubes-usb-proxy was removed from this qube, or changed; install it again",
        (
            "The package was removed but not purged, so its services below `/etc` have no program.",
            "A file of the package is missing.",
            "Nobody may run the program any more.",
        ),
        "Install it in the template of the qube with "
        "`sudo apt install --reinstall qubes-usb-proxy`, or `sudo dnf reinstall qubes-usb-proxy` "
        "in a Fedora template, and restart the qube. Or purge it in a Debian template: "
        "`sudo apt purge qubes-usb-proxy`.",
    ),
    "UP-781": (
        "this needs root; run: sudo {command}",
        ("A user who is not root started the program.",),
        "Run the command that the sentence names, such as `sudo /usr/lib/qubes/usb-detach-all`.",
    ),
}
