# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of the kernel's interfaces, each with the header that defines it.

Plain numbers: the module `enum` alone would be a fifth of a program's start and 0.8 MB of memory.
"""

from __future__ import annotations

VHCI_MODULE = "vhci-hcd"
VHCI_DRIVER = "/sys/devices/platform/vhci_hcd.0"
"""The frontend's driver, and its first controller: it is there with the module (vhci_hcd.c)."""


class UsbSpeed:
    """`enum usb_device_speed`, linux/usb/ch9.h; what vhci's `attach` takes."""

    LOW = 1
    FULL = 2
    HIGH = 3
    WIRELESS = 4
    SUPER = 5
    SUPER_PLUS = 6


SPEEDS = {
    "1.5": UsbSpeed.LOW,
    "12": UsbSpeed.FULL,
    "480": UsbSpeed.HIGH,
    "53.3-480": UsbSpeed.WIRELESS,
    "5000": UsbSpeed.SUPER,
    "10000": UsbSpeed.SUPER_PLUS,
    "20000": UsbSpeed.SUPER_PLUS,
}
"""The texts of a device's sysfs file `speed`, drivers/usb/core/sysfs.c (speed_show)."""


class PortState:
    """The states of a vhci port: `VDEV_ST_*` of `enum usbip_device_status`, linux/usbip.h."""

    FREE = 4
    NOT_ASSIGNED = 5
    USED = 6
    ERROR = 7


AUTOPROBE = "/sys/bus/usb/drivers_autoprobe"
"""0: no device gets a driver by itself, so none is configured (drivers/base/bus.c)."""

PROBE = "/sys/bus/usb/drivers_probe"
"""Takes the name of a device or interface for which the kernel is to look for a driver."""

DENY_NEW = "/proc/sys/kernel/deny_new_usb"
"""1: no hub takes what is plugged in. Of linux-hardened (drivers/usb/core/hub.c there)."""

STUB_AVAILABLE, STUB_USED = 1, 2
"""`enum usbip_device_status`, linux/usbip.h: bound to usbip-host, without a session and in one."""

USBDEVFS_RESET = 0x5514
"""_IO('U', 20), linux/usbdevice_fs.h."""

USBDEVFS_CLAIM_PORT = 0x80045518
"""_IOR('U', 24, unsigned int), linux/usbdevice_fs.h."""

USB_CLASS_HUB = "09"
"""linux/usb/ch9.h, as bDeviceClass shows it."""

USB_DT_CONFIG, USB_DT_INTERFACE = 2, 4
"""Kinds of descriptors, linux/usb/ch9.h."""

USB_DT_DEVICE_SIZE = 18
"""Of a device's descriptor, whatever it says of its length; its last byte counts the
configurations. linux/usb/ch9.h."""

NETLINK_KOBJECT_UEVENT = 15
"""linux/netlink.h."""

UEVENT_GROUPS = 1 | 2
"""Multicast groups: the kernel's own events (lib/kobject_uevent.c), and udev's, which follow each
(systemd, src/libsystemd/sd-device/device-monitor.c)."""
