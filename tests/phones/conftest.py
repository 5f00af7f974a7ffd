# SPDX-License-Identifier: GPL-2.0-or-later
"""A phone in sys-usb, and another qube that may have it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import faults, faulty_lab
from tests.lab.guests import Guest
from tests.lab.qubes import Qubes
from tests.lab.router import Call, Completed

__all__ = ["faults", "faulty_lab"]

HERE = Path(__file__).parent
SERIAL = "0123456789ABCDEF"
UDC = "/sys/kernel/config/usb_gadget/phone/UDC"
STEPS: dict[str, tuple[str, dict[str, object]]] = {
    "deconfigured": ("test -e $d && ! grep -q . $d/bConfigurationValue", {"drop": 0.6}),
    "away": ("! test -e $d", {"away": 2}),
    "back": ('test -e $d/driver && [ "$(cat $d/devnum)" != $n ]', {}),
    "held": ("readlink $d/driver | grep -q usbip-host", {}),
    "handed over": ("grep -q 2 $d/usbip_status", {}),
    "attached": ("grep -q . $d/bConfigurationValue && grep -q 2 $d/usbip_status", {}),
    "given back": ("test -e /run/detach && ! test -e $d", {"away": 2}),
}
"""When something happens while it is attached: a condition in the shell, and how it behaves."""

LEFT = "/run/qubes-usb-proxy/left-*"


class Phone:
    """The gadget of `gadget.py`."""

    def __init__(self, qubes: Qubes) -> None:
        self.qubes = qubes
        self.backend = qubes.backend
        self.bus_id = ""

    def make(self) -> None:
        """Make it, unplugged, if the guests were started anew."""
        self.qubes.frontend.push(HERE / "talk.py", "/run/talk.py")
        if self.backend.run("pgrep -f '[g]adget.py'", check=False).code:
            self.backend.push(HERE / "gadget.py", "/run/gadget.py")
            self.backend.run("modprobe dummy_hcd")
            self.backend.start_command("exec python3 /run/gadget.py")
            self.settled()
            self.unplug()

    def settled(self) -> str:
        """Its bus id, once it is there with its driver and a configuration."""
        return self.qubes.bus_id(f"serial={SERIAL}", 'driver && grep -q . "$d"/bConfigurationValue')

    def is_settled(self) -> bool:
        """Whether it has its driver and a configuration right now."""
        look = "grep -q . bConfigurationValue && test -e driver"
        return self.backend.run(f"cd {self.sysfs()} && {look}", check=False).code == 0

    def behave(self, **settings: object) -> None:
        """From now on it leaves and returns like this, see `gadget.py`."""
        self.backend.write("/run/phone/.settings", json.dumps(settings))
        self.backend.run("mv /run/phone/.settings /run/phone/settings; : > /run/phone/log")

    def forget(self) -> None:
        """Nothing is known of what it did the last time."""
        self.backend.run(f"rm -f {LEFT}")

    def unplug(self) -> None:
        """Pull it out."""
        self.behave(returns="never")
        self.backend.run(f"echo > {UDC}", check=False)
        self.backend.wait_for(f"! grep -l {SERIAL} /sys/bus/usb/devices/*/serial")

    def plug(self, speed: str = "super-speed", **settings: object) -> str:
        """Plug it in again as what it was: its bus id."""
        # While it is to stay away: once it is plugged in, nothing of this can be changed.
        folder = UDC.removesuffix("UDC")
        function, its_place = "functions/ffs.phone", "configs/c.1/ffs.phone"
        phone = f"test -e {its_place} || ln -s {folder}{function} {its_place}"
        self.backend.run(f"cd {folder}; rm -f configs/c.1/hid.*; {phone}")
        self.backend.run(f"echo 0x4ee7 > {folder}idProduct; echo {speed} > {folder}max_speed")
        self.behave(**settings)
        # It may just have come back by itself.
        self.backend.run(f"echo dummy_udc.0 > {UDC}", check=False)
        return self.settled()

    def departures(self) -> int:
        """How often it has left the bus since it was told how to behave."""
        return self.backend.run("cat /run/phone/log").text.count("leaves")

    def talks(self, guest: Guest | None = None) -> None:
        """Data go to it and come back in a qube."""
        guest = guest or self.qubes.frontend
        guest.run(f"python3 /run/talk.py {SERIAL}")

    def attached(self) -> Completed:
        """Attach it to work, where data go both ways then."""
        done = self.qubes.attach(self.bus_id)
        assert (done.code, done.stderr) == (0, b""), self.story()
        self.talks()
        # It is told after the hand-over, beside the rest of the attach.
        assert self.qubes.connected_to(self.bus_id) == b"work"
        return done

    def sysfs(self) -> str:
        """Its folder."""
        return f"/sys/bus/usb/devices/{self.bus_id}"

    def watch(self, when: str, action: str) -> Call:
        """From now on it behaves as one of `STEPS` says, and at that step something is done."""
        condition, settings = STEPS[when]
        self.behave(**settings)
        phone = f"d={self.sysfs()} n=$(cat {self.sysfs()}/devnum)"
        until = f"until {{ {condition}; }} 2>/dev/null; do :; done"
        return self.backend.start_command(f"{phone}; {until}; {action}")

    def interrupted(self, when: str, action: str) -> Completed:
        """Attach it, and do something to the exporter or to the phone in the middle of that."""
        watcher = self.watch(when, action)
        done = self.qubes.attach(self.bus_id)
        if when == "given back":
            self.backend.run("touch /run/detach")
            self.qubes.detach(self.bus_id)
        watched = watcher.wait(60)
        self.backend.run("rm -f /run/detach")
        assert watched.code == 0, (watched, self.story())
        return done

    def story(self) -> str:
        """What happened to it."""
        return self.backend.run("cat /run/phone/log; dmesg | tail -n 40").text


@pytest.fixture(scope="session")
def one_phone(running_lab: Qubes) -> Phone:
    """The phone; there is only one."""
    return Phone(running_lab)


@pytest.fixture
def phone(one_phone: Phone, qubes: Qubes) -> Iterator[Phone]:
    """The phone, plugged in, with nothing known of it; afterwards it is as it was before."""
    one_phone.make()
    one_phone.bus_id = one_phone.plug()
    one_phone.forget()
    yield one_phone
    qubes.await_clean()
    one_phone.unplug()
    one_phone.forget()
