# SPDX-License-Identifier: GPL-2.0-or-later
"""Other implementations at the other end, and peers that lie, stall or leave."""

import pytest

from .conftest import Qubes

LIES = {
    "closes": ("exit 0", "the backend closed the connection without an answer"),
    "half a line": ("printf '131074 50'", "closed the connection within its answer"),
    "silence": ("exec sleep 90", "the backend sent no answer in time"),
    "half a line, then silence": ("printf 1310; sleep 90", "only part of an answer in time"),
    "a byte a second": ("while printf 1; do sleep 1; done", "only part of an answer in time"),
    "no end": ("head -c 9999 /dev/zero | tr '\\0' 1", "the backend's answer is too long"),
    "empty line": ("echo; sleep 9", "'' is not 'DEVID SPEED'"),
    "negative": ("echo -1 480; sleep 9", "'-1 480' has no decimal device number"),
    "2^32": ("echo 4294967296 480; sleep 9", "has an impossible device number"),
    "no device number": ("echo 131072 480; sleep 9", "has an impossible device number"),
    "unknown speed": ("echo 131074 481; sleep 9", "'131074 481' has an unknown speed"),
    "path": ("echo 131074 ../../etc; sleep 9", "has an unknown speed"),
    "shell": ("echo '131074 $(reboot)'; sleep 9", "has an unknown speed"),
    "not ASCII": ("printf '131074 48\\303\\240\\n'; sleep 9", "is not 'DEVID SPEED'"),
    "escape sequence": ("printf '\\033[2J\\n'; sleep 9", "'[2J' is not"),
    "silent device": ("echo 131074 480; exec sleep 90", "the device does not answer (15 s)"),
    "leaves after the line": ("echo 131074 5000", "the backend ended the connection"),
    "garbage for the kernel": (
        "echo 131074 5000; yes garbage | head -c 4096; sleep 90",
        "the backend ended the connection while the device was set up",
    ),
}


def test_lying_backends(qubes: Qubes) -> None:
    """All at once: each has a device name of its own, and the silent ones take a while."""
    calls = {}
    for number, (name, (script, _)) in enumerate(LIES.items(), 1):
        device = f"9-{number}"
        service = f"/usr/local/etc/qubes-rpc/qubes.USB+{device}"
        qubes.backend.write(service, f"#!/bin/sh\n{script}\n", 0o755)
        qubes.lab.allow("qubes.USB", device, qubes.frontend, qubes.backend)
        request = f"sys-usb {device}\n".encode()
        calls[name] = qubes.lab.start_call(qubes.frontend, "qubes.USBAttach", request)
    try:
        for name, call in calls.items():
            done = call.wait(120)
            assert done.code not in (0, -1), name
            assert LIES[name][1] in done.stderr.decode(), name
            assert done.stderr.count(b"\n") == 1, (name, done.stderr)
            assert b"\033" not in done.stderr
    finally:
        qubes.backend.run("rm /usr/local/etc/qubes-rpc/qubes.USB+9-*; pkill sleep; true")
    assert qubes.await_clean() == []


SHELL_BACKEND = """#!/bin/sh
device=/sys/bus/usb/devices/$1 driver=/sys/bus/usb/drivers/usbip-host
modprobe usbip-host
printf 'add %s' "$1" > $driver/match_busid
printf %s "$1" > /sys/bus/usb/drivers/usb/unbind
printf %s "$1" > $driver/bind
kill -USR1 "$QREXEC_AGENT_PID"
echo "$(($(cat $device/busnum) << 16 | $(cat $device/devnum))) $(cat $device/speed)" >&0
echo 0 > $device/usbip_sockfd
while [ "$(cat $device/usbip_status)" != 1 ]; do sleep 0.2; done
printf %s "$1" > $driver/unbind
printf %s "$1" > /sys/bus/usb/drivers_probe
"""


def test_importer_with_a_shell_backend(qubes: Qubes, stick: str) -> None:
    service = f"/usr/local/etc/qubes-rpc/qubes.USB+{stick}"
    qubes.backend.write(service, SHELL_BACKEND, 0o755)
    try:
        done = qubes.attach(stick)
        assert (done.code, done.stderr) == (0, b"")
        qubes.frontend.wait_for("test -b /dev/sda")
        assert qubes.frontend.read(f"/run/qubes/usb-import-sys-usb-{stick}.state")
        assert qubes.detach(stick).code == 0
    finally:
        qubes.backend.run(f"rm {service}")
    qubes.backend.wait_for(f"readlink /sys/bus/usb/devices/{stick}/driver | grep -q usb$")


SHELL_FRONTEND = """#!/bin/sh
read -r devid speed
driver=/sys/devices/platform/vhci_hcd.0
kill -USR1 "$QREXEC_AGENT_PID"
port=$(awk '$1 == "ss" && $3 == "004" { print $2 + 0; exit }' $driver/status)
echo "$port 0 $devid 5" > $driver/attach
echo "$devid $speed" > /run/attached
while ! awk -v port="$port" '$2 + 0 == port && $3 == "004" { exit 1 }' $driver/status; do :; done
while awk -v port="$port" '$2 + 0 == port && $3 == "004" { exit 1 }' $driver/status; do
    sleep 0.2
done
"""


def test_exporter_with_a_shell_frontend(qubes: Qubes, stick: str) -> None:
    qubes.frontend.write("/run/frontend", SHELL_FRONTEND, 0o755)
    qubes.frontend.run("modprobe vhci-hcd")
    with qubes.lab.allowed("qubes.USB", stick, qubes.frontend, qubes.backend):
        call = qubes.frontend.start_command(
            f"qrexec-client-vm sys-usb qubes.USB+{stick} /run/frontend"
        )
        qubes.frontend.wait_for("test -b /dev/sda")
    assert qubes.frontend.read("/run/attached").split()[1] == b"5000"
    assert qubes.connected_to(stick) == b"work"
    assert qubes.take_back(stick).code == 0
    assert qubes.driver(stick) == "usb"
    assert call.wait(30).code == 0
    qubes.frontend.run("rm /run/attached /run/frontend")


@pytest.mark.parametrize(
    "script",
    [
        "exit 0",
        "read -r line; exit 0",
        "exec 3<&0; read -r line; kill -USR1 $QREXEC_AGENT_PID;"
        " yes garbage | head -c 4096 >&3; cat",
        # A wrong devid: USBIP_CMD_SUBMIT for a device that is not the one that was offered.
        "read -r line; kill -USR1 $QREXEC_AGENT_PID;"
        " printf '\\0\\0\\0\\1\\0\\0\\0\\1\\0\\7\\0\\7' >&0; head -c 36 /dev/zero >&0; cat",
        "read -r line; exec sleep 2",
    ],
)
def test_lying_frontends(qubes: Qubes, stick: str, script: str) -> None:
    with qubes.lab.allowed("qubes.USB", stick, qubes.frontend, qubes.backend):
        qubes.frontend.run(
            f"qrexec-client-vm sys-usb qubes.USB+{stick} /bin/sh -c '{script}'", check=False
        )
    assert qubes.await_clean() == []
    assert qubes.driver(stick) == "usb"
    assert qubes.connected_to(stick) is None
    assert qubes.attach(stick).code == 0
    assert qubes.detach(stick).code == 0
    assert qubes.await_clean() == []


@pytest.mark.parametrize("side", ["frontend", "backend"])
def test_a_qube_is_killed(qubes: Qubes, stick: str, side: str) -> None:
    assert qubes.attach(stick).code == 0
    if side == "frontend":
        qubes.frontend.restart()
    else:
        qubes.backend.restart()
        stick = qubes.plug_storage("stick")
    assert qubes.await_clean() == []
    assert qubes.driver(stick) == "usb"
    assert qubes.attach(stick).code == 0
    assert qubes.detach(stick).code == 0
    assert qubes.await_clean() == []
