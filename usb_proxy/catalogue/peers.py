# SPDX-License-Identifier: GPL-2.0-or-later
"""UP-6: the other qube, or dom0, said no, said nonsense, or said nothing."""

_ANSWER = "the backend's answer '{answer}' "
_SAME = "; install the same qubes-usb-proxy in both qubes"
_STRANGE = (
    "The other qube runs another program than this, or lies.",
    "Install the same version of this package in both qubes, and restart them.",
)

ENTRIES = {
    "UP-601": (_ANSWER + "is no line of two fields" + _SAME, *_STRANGE),
    "UP-602": (_ANSWER + "is not 'DEVID SPEED'" + _SAME, *_STRANGE),
    "UP-603": (_ANSWER + "has no decimal device number" + _SAME, *_STRANGE),
    "UP-604": (_ANSWER + "has an impossible device number" + _SAME, *_STRANGE),
    "UP-605": (_ANSWER + "has an unknown speed" + _SAME, *_STRANGE),
    "UP-606": ("the backend's answer is too long" + _SAME, *_STRANGE),
    "UP-607": (
        "dom0's policy does not let this qube call {service} in {backend}; "
        "attach with qvm-usb in dom0, which allows the one call",
        "Only `qvm-usb` may attach by itself, and a rule of yours may deny even that.",
        "Attach with `qvm-usb`, or add a rule for `qubes.USB` to "
        "`/etc/qubes/policy.d/30-user.policy`. Or the qube was renamed or is not running.",
    ),
    "UP-608": (
        "{device} of {backend} is not attached: {quoted}",
        "The other qube, or what runs there, had a reason that is not in this list.",
        "See the words that are quoted, and the journal of the qube that says them.",
    ),
    "UP-609": (
        "{device} of {backend} is not attached: the call of {service} did not come about "
        "(exit code {code}); "
        "see that {backend} runs and has qubes-usb-proxy installed",
        "The service in the other qube could not be started by qrexec.",
        "Start that qube, install this package in its template, and restart both qubes.",
    ),
    "UP-610": (
        "the other qube closed the connection; try again",
        "The qube that asked for the device gave up, was shut down, or was killed.",
        "Attach again. If this repeats, the other qube's sentence tells more.",
    ),
    "UP-611": (
        "the program that asked for the device has gone; attach it again",
        "`qubes.USBAttach` was ended while the device was set up, so the device went back.",
        "Attach again.",
    ),
    "UP-612": (
        "the backend sent {what} answer in time; try again",
        "The qube with the device is overloaded, or hangs over the device.",
        "Try again. If that does not help, plug the device in again, or restart that qube.",
    ),
    "UP-613": (
        "the backend closed the connection within its answer; try again",
        "The qube with the device was shut down or killed, or runs another program than this.",
        "Try again. If it repeats, install the same version of this package in both qubes.",
    ),
    "UP-614": (
        "the backend closed the connection without an answer; "
        "see that qubes-usb-proxy is installed there",
        "This package is not installed in the other qube, or was installed after it had started.",
        "Install it in that qube's template, and restart that qube.",
    ),
    "UP-615": (
        "the backend ended the connection while the device was set up; try again",
        "The device was unplugged, or detached on the other side, just now.",
        "See that it is plugged in, and attach again.",
    ),
    "UP-616": (
        "the device does not answer ({seconds:.0f} s); "
        "unplug it, plug it in again and try once more",
        "The two qubes are connected, but the device says nothing.",
        "Unplug it, plug it in again. If that does not help, try with `usb-reset-on-attach`.",
    ),
    "UP-617": (
        "vhci-hcd refused the device {devid:#x} at port {port}: {reason}; try again",
        "The kernel of this qube does not take what the other qube offers.",
        "Try again; if it repeats, restart this qube and report the sentence.",
    ),
    "UP-618": (
        "{device} of {backend} is not attached: the call of {service} has not ended in time, "
        "and is given up; try again",
        "The two qubes are overloaded, or one of them hangs.",
        "Try again. If that does not help, restart the qube with the device.",
    ),
}
