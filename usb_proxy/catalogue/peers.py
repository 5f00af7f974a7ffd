# SPDX-License-Identifier: GPL-2.0-or-later
"""UP-6: the other qube, or dom0, said no, said nonsense, or said nothing."""

_ANSWER = "the qube with the controllers gave a bad answer: '{answer}' "
_SAME = "; install the same qubes-usb-proxy in both qubes"
_STRANGE = (
    (
        "The qube with the controllers runs a different program.",
        "The qube with the controllers sends false data.",
    ),
    "Install the same version of this package in both templates, with "
    "`sudo apt install qubes-usb-proxy` or `sudo dnf install qubes-usb-proxy`, and restart both "
    "qubes.",
)

ENTRIES = {
    "UP-601": (_ANSWER + "is not a line of two fields" + _SAME, *_STRANGE),
    "UP-602": (_ANSWER + "is not 'DEVID SPEED'" + _SAME, *_STRANGE),
    "UP-603": (_ANSWER + "has no decimal device number" + _SAME, *_STRANGE),
    "UP-604": (_ANSWER + "has an impossible device number" + _SAME, *_STRANGE),
    "UP-605": (_ANSWER + "has an unknown speed" + _SAME, *_STRANGE),
    "UP-606": ("the answer of the qube with the controllers is too long" + _SAME, *_STRANGE),
    "UP-607": (
        "dom0's policy does not let this qube call {service} in {backend}, "
        "or {backend} does not start; make sure that it runs, and attach with qvm-usb in dom0",
        (
            "A program other than `qvm-usb` asked, and no rule of yours allows that.",
            "A rule of yours denies the call.",
            "The qube was renamed.",
            "The qube cannot be started.",
        ),
        "qrexec does not say which of these it is. Start that qube with `qvm-start BACKEND`, and "
        "attach with `qvm-usb attach QUBE BACKEND:DEVICE`. For other programs, add a rule for "
        "`qubes.USB` to `/etc/qubes/policy.d/30-user.policy`.",
    ),
    "UP-608": (
        "{device} of {backend} is not attached: {quoted}",
        ("A program in one of the two qubes gave a reason that is not in this list.",),
        "Read the quoted words, and `sudo journalctl -e` in both qubes. Words after `said on the "
        "way` come from another program in one of the two qubes.",
    ),
    "UP-609": (
        "{device} of {backend} is not attached: the call of {service} failed "
        "(exit code {code}); "
        "make sure that {backend} runs and has qubes-usb-proxy installed",
        ("The service in the qube with the controllers could not be started.",),
        "`qvm-usb-doctor QUBE BACKEND:DEVICE` in dom0 says what is missing. Start that qube, "
        "install this package in its template, and restart both qubes.",
    ),
    "UP-610": (
        "the qube that asked for the device closed the connection; try again",
        (
            "The qube that asked for the device gave up.",
            "That qube was shut down.",
            "That qube was killed.",
        ),
        "Attach the device again: `qvm-usb attach QUBE BACKEND:DEVICE`. If this repeats, that "
        "qube's sentence says more.",
    ),
    "UP-611": (
        "the program that asked for the device has gone; attach it again",
        ("`qubes.USBAttach` ended while the device was being set up, so the device went back.",),
        "Attach it again: `qvm-usb attach QUBE BACKEND:DEVICE`.",
    ),
    "UP-612": (
        "the qube with the controllers sent {what} answer in time; try again",
        (
            "The qube with the controllers is overloaded.",
            "Its kernel hangs because of the device.",
        ),
        "Try again. If that does not help, plug the device in again, or restart that qube: "
        "`qvm-shutdown --wait BACKEND && qvm-start BACKEND` in dom0.",
    ),
    "UP-613": (
        "the qube with the controllers closed the connection in the middle of its answer; "
        "try again",
        (
            "The qube with the controllers was shut down.",
            "That qube was killed.",
            "That qube runs a different program.",
        ),
        "Try again. If this repeats, install the same version of this package in both templates, "
        "with `sudo apt install qubes-usb-proxy` or `sudo dnf install qubes-usb-proxy`.",
    ),
    "UP-614": (
        "the qube with the controllers closed the connection without an answer; "
        "make sure that qubes-usb-proxy is installed there",
        (
            "This package is not installed in the qube with the controllers.",
            "It was installed after that qube started.",
        ),
        "Install it in that qube's template, with `sudo apt install qubes-usb-proxy` or `sudo dnf "
        "install qubes-usb-proxy`, and restart that qube.",
    ),
    "UP-615": (
        "the qube with the controllers ended the connection while the device was set up; try again",
        (
            "Somebody has just unplugged the device.",
            "Somebody has just detached it on the other side.",
        ),
        "See in `qvm-usb list` that it is plugged in, and attach it again.",
    ),
    "UP-616": (
        "the device does not answer ({seconds:.0f} s); "
        "unplug it, plug it in again and try once more",
        ("The two qubes are connected, but the device says nothing.",),
        "Unplug it, and plug it in again. If that does not help, run `qvm-service --enable "
        "BACKEND usb-reset-on-attach` in dom0, and restart that qube.",
    ),
    "UP-617": (
        "vhci-hcd refused the device {devid:#x} at port {port}: {reason}; try again",
        ("The kernel of this qube does not accept what the qube with the controllers offers.",),
        "Try again. If this repeats, restart this qube with `qvm-shutdown --wait QUBE && "
        "qvm-start QUBE` in dom0, and report the sentence.",
    ),
    "UP-618": (
        "{device} of {backend} is not attached: the call of {service} has not ended in time, "
        "so it is given up; try again",
        ("The two qubes are overloaded.", "One of them hangs."),
        "Try again. If that does not help, restart the qube with the controllers: "
        "`qvm-shutdown --wait BACKEND && qvm-start BACKEND` in dom0.",
    ),
    "UP-621": (
        "the device answers, but drivers of this qube have not finished setting it up "
        "({seconds:.0f} s); unplug it, plug it in again and try once more",
        ("A driver waits for the device.", "A driver waits for the device's firmware."),
        "`sudo journalctl -k` in the qube that gets the device shows what the driver needs.",
    ),
    "UP-622": (
        "{backend} has no service {service}; install qubes-usb-proxy there, and restart {backend}",
        (
            "The package is not installed in the qube with the controllers.",
            "It was installed while that qube ran.",
        ),
        "Install it in that qube's template, with `sudo apt install qubes-usb-proxy` or `sudo dnf "
        "install qubes-usb-proxy`, and restart that qube.",
    ),
    "UP-623": (
        "{backend} has the service {service}, but cannot run it; reinstall qubes-usb-proxy there",
        (
            "The service is not executable there.",
            "Its `rpc-config` is broken.",
            "The user who should run it is missing.",
        ),
        "`sudo qubes-usb-proxy doctor` there names what is wrong. Repair that or reinstall the "
        "package in that qube's template, and restart the qube. `sudo journalctl -u "
        "qubes-qrexec-agent` there says more.",
    ),
    "UP-640": (
        "dom0 announced {announced}, but {came} arrived, so it was detached; "
        "plug it in again and look at 'qvm-usb list'",
        (
            "The device changed after you chose it.",
            "Another device took its place.",
            "It is a hub, which a qube never takes.",
            "The qube with the controllers sends false data.",
        ),
        "Plug the device in again, look at `qvm-usb list`, and attach it again. If this repeats, "
        "do not trust the device, and restart the qube with the controllers.",
    ),
    "UP-641": (
        "dom0 announced {announced}, but none of these interfaces arrived: {came}, "
        "so it was detached; plug it in again and look at 'qvm-usb list'",
        (
            "The device changed after you chose it.",
            "The qube with the controllers sends false data.",
        ),
        "Plug the device in again, look at `qvm-usb list`, and attach it again.",
    ),
    "UP-642": (
        "interface {interfaces} was not announced by dom0, so it gets no driver; "
        "if the device works, do nothing",
        (
            "The device had more interfaces than dom0 knew of when you chose it.",
            "The device has got more interfaces since then.",
        ),
        "If the device works, do nothing. To allow every interface in this qube, run `qvm-service "
        "--enable QUBE usb-proxy-any-interface` in dom0.",
    ),
}
