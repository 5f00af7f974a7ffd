# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps that the tracer finds in each program, in their order.

`test_death.py` compares them with a recording: a new step of the product has to be added here, and
is then part of every family that goes through the steps.
"""

CHANGES = frozenset(
    (
        *("ftruncate", "ioctl", "kill", "killpg", "lockf", "pidfd_send_signal", "poll"),
        *("posix_spawn", "pwrite", "rename", "sendall", "shutdown", "symlink"),
        *("unlink", "write"),
    )
)
"""The calls that change something outside or wait; others only look, and matter to cables alone."""


OPTIONAL = frozenset(
    ("vhci.attach poll", "vhci.await_removal lstat (2)", "vhci.await_removal poll")
)
"""Whether these come depends on the order of the kernel's events."""


def changes(steps: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the steps that change something outside or wait."""
    return tuple(step for step in steps if step.split()[1] in CHANGES)

ATTACH = (
    "qrexec.read_request poll",
    "usb_attach.main lstat",
    "usb_attach._call posix_spawn qrexec-client-vm",
    "usb_attach._listen poll",
)
"""usb-attach, the service in the frontend."""

EXPORT = (
    "usb_export._serve lstat usbip-host",
    "usb_export._serve lstat",
    "runstate.Lock._open open",
    "runstate.Lock.acquire lockf",
    "runstate.Lock._is_current stat",
    "sysfs.UsbDevice.__init__ open",
    "sysfs.UsbDevice.attribute open bDeviceClass",
    "sysfs.UsbDevice.refusal readlink",
    "sysfs.UsbDevice.__init__ open (2)",
    "sysfs.UsbDevice.driver readlink",
    "sysfs.UsbDevice.identity open serial",
    "sysfs.UsbDevice.attribute open idVendor",
    "sysfs.UsbDevice.attribute open idProduct",
    "runstate.Lock.note ftruncate",
    "runstate.Lock.note pwrite",
    "runstate._remove unlink",
    "runstate.Lock.tell symlink",
    "sysfs.UsbDevice.attribute open idVendor (2)",
    "sysfs.UsbDevice.attribute open idProduct (2)",
    "qrexec.Link._is_agent open status",
    "qrexec.Link.use_both_ways kill",
    "sysfs.UsbDevice.attribute open authorized",
    "departures.recall open",
    "sysfs.UsbDevice.attribute open dev",
    "sysfs.UsbDevice.property open",
    "sysfs.UsbDevice.driver readlink (2)",
    "usbip_host._take open match_busid",
    "usbip_host._take write match_busid",
    "sysfs.UsbDevice.driver readlink (3)",
    "sysfs.UsbDevice.write open unbind",
    "sysfs.UsbDevice.write write unbind",
    "usbip_host._take open bind",
    "usbip_host._take write bind",
    "sysfs.UsbDevice.driver readlink (4)",
    "sysfs.UsbDevice.attribute open usbip_status",
    "sysfs.UsbDevice.attribute open busnum",
    "sysfs.UsbDevice.attribute open devnum",
    "sysfs.UsbDevice.pin open",
    "sysfs.UsbDevice.attribute open busnum (2)",
    "usb_export._prepare lstat usb-reset-on-attach",
    "sysfs.UsbDevice.attribute open busnum (3)",
    "sysfs.UsbDevice.attribute open devnum (2)",
    "sysfs.UsbDevice.attribute open speed",
    "qrexec.Link.send sendall",
    "sysfs.UsbDevice.write open usbip_sockfd",
    "sysfs.UsbDevice.write write usbip_sockfd",
    "qubesdb._write posix_spawn qubesdb-write",
    "qubesdb._write poll qubesdb-write",
    "sysfs.UsbDevice.is_plugged stat",
    "qrexec.Link.await_end poll",
)
"""usb-export, up to where it sleeps while the device is attached."""

EXPORT_END = (
    "sysfs.UsbDevice.driver readlink (5)",
    "qubesdb.unpublish posix_spawn qubesdb-rm",
    "qubesdb.unpublish poll qubesdb-rm",
    "qubesdb._write posix_spawn qubesdb-write (2)",
    "qubesdb._write poll qubesdb-write (2)",
    "qrexec.Link.end shutdown",
    "qrexec.Link.end poll",
    "leftovers.give_back lstat usb-proxy-keep-unbound",
    "sysfs.UsbDevice.driver readlink (6)",
    "sysfs.UsbDevice.write open usbip_sockfd (2)",
    "sysfs.UsbDevice.write write usbip_sockfd (2)",
    "sysfs.UsbDevice.write open unbind (2)",
    "sysfs.UsbDevice.write write unbind (2)",
    "usbip_host.give_back open rebind",
    "usbip_host.give_back write rebind",
    "departures.recall open (2)",
    "runstate.Lock.note ftruncate (2)",
    "runstate.Lock.note pwrite (2)",
    "runstate._remove unlink (2)",
    "runstate.Lock.__exit__ unlink",
)
"""usb-export, from there on."""

IMPORT = (
    "runstate.Lock._open open",
    "runstate.Lock.acquire lockf",
    "runstate.Lock._is_current stat",
    "qrexec.Link.read_line poll",
    "qrexec.Link.read_line recv",
    "qrexec.Link._is_agent open status",
    "qrexec.Link.use_both_ways kill",
    "vhci.ports open status",
    "vhci.ports open",
    "vhci.device_path listdir",
    "vhci.device_path open speed",
    "vhci.attach lstat",
    "runstate.Lock.note ftruncate",
    "runstate.Lock.note pwrite",
    "vhci._try_attach open attach",
    "vhci._try_attach write attach",
    "runstate._remove unlink",
    "runstate.Lock.tell symlink",
    "runstate._remove unlink (2)",
    "runstate.write_record open",
    "runstate.write_record write",
    "runstate.write_record rename",
    "usb_import._await_device poll",
    "usb_import.Report.send write",
    "vhci.product.<locals>.<genexpr> open idVendor",
    "vhci.product.<locals>.<genexpr> open idProduct",
    "qrexec.Link.await_end poll",
)
"""usb-import, up to where it sleeps while the device is attached."""

IMPORT_END = (
    "qrexec.Link.end shutdown",
    "qrexec.Link.end poll",
    "vhci.await_removal lstat",
    "runstate._remove unlink (3)",
    "runstate.Lock.note ftruncate (2)",
    "runstate.Lock.note pwrite (2)",
    "runstate._remove unlink (4)",
    "runstate.Lock.__exit__ unlink",
)
"""usb-import, from there on."""

DETACH_IN_FRONTEND = (
    "qrexec.read_request poll",
    "runstate.Lock._open open",
    "runstate.Lock.stop_holder pidfd_send_signal",
    "runstate.Lock.stop_holder pidfd_send_signal (2)",
    "runstate.await_end poll",
    "runstate.Lock._open open (2)",
    "runstate.Lock.acquire lockf",
    "runstate.Lock._is_current stat",
    "runstate.read_record open",
    "leftovers.remove_import lstat",
    "runstate._remove unlink",
    "runstate.Lock.note ftruncate",
    "runstate.Lock.note pwrite",
    "runstate._remove unlink (2)",
    "runstate.Lock.__exit__ unlink",
)
"""usb-detach in the frontend."""

DETACH_IN_BACKEND = (
    "qrexec.read_request poll",
    "runstate.Lock._open open",
    "runstate.Lock.stop_holder pidfd_send_signal",
    "runstate.Lock.stop_holder pidfd_send_signal (2)",
    "runstate.await_end poll",
    "runstate.Lock._open open (2)",
    "runstate.Lock.acquire lockf",
    "runstate.Lock._is_current stat",
    "sysfs.UsbDevice.__init__ open",
    "sysfs.UsbDevice.driver readlink",
    "runstate._remove unlink",
    "runstate.Lock.__exit__ unlink",
)
"""usb-detach in the backend."""

REPAIR_IN_BACKEND = (
    "runstate.lock_names listdir qubes-usb-proxy",
    "runstate.Lock._open open",
    "runstate.Lock.acquire lockf",
    "runstate.Lock._is_current stat",
    "qubesdb.unpublish posix_spawn qubesdb-rm",
    "qubesdb.unpublish poll qubesdb-rm",
    "qubesdb._write posix_spawn qubesdb-write",
    "qubesdb._write poll qubesdb-write",
    "sysfs.UsbDevice.__init__ open",
    "leftovers.give_back lstat usb-proxy-keep-unbound",
    "sysfs.UsbDevice.driver readlink",
    "sysfs.UsbDevice.attribute open busnum",
    "sysfs.UsbDevice.attribute open devnum",
    "sysfs.UsbDevice.pin open",
    "sysfs.UsbDevice.attribute open busnum (2)",
    "sysfs.UsbDevice.write open usbip_sockfd",
    "sysfs.UsbDevice.write write usbip_sockfd",
    "sysfs.UsbDevice.write open unbind",
    "sysfs.UsbDevice.write write unbind",
    "usbip_host.give_back open rebind",
    "usbip_host.give_back write rebind",
    "runstate.notice readlink",
    "runstate.notice lstat",
    "runstate.Lock.note ftruncate",
    "runstate.Lock.note pwrite",
    "runstate._remove unlink",
    "runstate.Lock.__exit__ unlink",
)
"""usb-repair after a killed exporter."""

REPAIR_IN_FRONTEND = (
    "runstate.lock_names listdir qubes-usb-proxy",
    "runstate.Lock._open open",
    "runstate.Lock.acquire lockf",
    "runstate.Lock._is_current stat",
    "runstate.lock_names listdir qubes-usb-proxy (2)",
    "vhci.find lstat",
    "vhci.ports open status",
    "vhci.device_path listdir",
    "vhci.device_path open speed",
    "vhci.detach open detach",
    "vhci.detach write detach",
    "vhci.await_removal lstat",
    "leftovers.remove_import lstat",
    "runstate._remove unlink",
    "runstate.notice readlink",
    "runstate.notice lstat",
    "runstate.Lock.note ftruncate",
    "runstate.Lock.note pwrite",
    "runstate._remove unlink (2)",
    "runstate.Lock.__exit__ unlink",
)
"""usb-repair after a killed importer."""
