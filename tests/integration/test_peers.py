# SPDX-License-Identifier: GPL-2.0-or-later
"""Other implementations at the other end; those that lie, stall or leave are in tests/faults."""

from tests.lab.qubes import Qubes

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
