# SPDX-License-Identifier: GPL-2.0-or-later
"""qubes-usb-proxy: what it shows of both sides, what it finds wrong, and what it repairs."""

import itertools
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.guests import Guest
from tests.lab.qubes import PACKAGES, Qubes
from tests.lab.router import Completed

from .test_exporter import usbguard  # noqa: F401

NAME = "QEMU QEMU USB HARDDRIVE"
KILL = (
    "pids=$(pgrep -f '[l]aunch usb-{0}|[l]ib/qubes/usb-{0}'); kill -9 $pids;"
    " for pid in $pids; do while [ -e /proc/$pid ]; do sleep 0.1; done; done"
)
"""Also the shell that would clean up; until they have gone: without a command line, to be seen in
pgrep, a dying process still has its locks."""


def tool(guest: Guest, words: str, user: str = "nobody") -> Completed:
    """Run the command as somebody who has no rights."""
    return guest.run(f"qubes-usb-proxy {words}", user=user, check=False)


def status(guest: Guest) -> dict[str, Any]:
    done = tool(guest, "status --json")
    assert (done.code, done.stderr) == (0, b"")
    return dict(json.loads(done.stdout))


def doctor(guest: Guest, user: str = "root") -> tuple[int, list[dict[str, str]]]:
    """Its exit code, and what it does not find well."""
    done = tool(guest, "doctor --json", user)
    assert done.stderr == b""
    findings = json.loads(done.stdout)["findings"]
    return done.code, [finding for finding in findings if finding["level"] != "ok"]


def kill(guest: Guest, which: str) -> None:
    """Kill an importer or exporter and the shell that would clean up after it."""
    guest.run(KILL.format(which))


def test_status_as_an_ordinary_user(qubes: Qubes, stick: str) -> None:
    free: dict[str, object] = {
        "device": stick,
        "vendor": "46f4",
        "product": "0001",
        "name": NAME,
        "speed": "5000",
        "driver": "usb",
        "state": "free",
        "peer": None,
        "since": None,
        "used_by": [],
    }
    clean = {"version": 1, "devices": [], "attachments": [], "leftovers": []}
    assert status(qubes.backend) == clean | {"devices": [free]}
    assert status(qubes.frontend) == clean
    before = int(qubes.backend.run("date +%s").text) - 1
    assert qubes.attach(stick).code == 0
    state = status(qubes.backend)
    (device,) = state["devices"]
    assert device["since"] >= before
    attached = {"driver": "usbip-host", "state": "attached", "peer": "work"}
    assert state == clean | {"devices": [free | attached | {"since": device["since"]}]}
    (port,) = status(qubes.frontend)["attachments"]
    assert port.pop("since") >= before - 100
    record = qubes.frontend.read(f"/run/qubes/usb-import-sys-usb-{stick}.state")
    assert port.pop("port") == int(record)
    here = port.pop("here")
    assert qubes.frontend.run(f"cat /sys/bus/usb/devices/{here}/idVendor").text == "46f4"
    assert port == {
        "backend": "sys-usb",
        "device": stick,
        "vendor": "46f4",
        "product": "0001",
        "name": NAME,
        "speed": "5000",
        "state": "attached",
        "unannounced": [],
    }
    head, line = tool(qubes.backend, "status").text.splitlines()
    assert head.split() == ["DEVICE", "ID", "NAME", "ATTACHED", "TO", "SINCE"]
    assert line.startswith(f"{stick}     46f4:0001  {NAME}  work         20")
    lines = tool(qubes.frontend, "status").text.splitlines()
    assert lines[1].startswith(f"sys-usb:{stick}    46f4:0001  {NAME}  ")
    assert qubes.detach(stick).code == 0
    assert status(qubes.frontend) == clean
    qubes.backend.wait_for("! ls /run/qubes-usb-proxy/*")
    assert status(qubes.backend) == clean | {"devices": [free]}


def test_nobody_can_open_a_lock(qubes: Qubes, stick: str) -> None:
    assert qubes.attach(stick).code == 0
    for guest in (qubes.backend, qubes.frontend):
        done = guest.run("cat /run/qubes-usb-proxy/*.lock", user="nobody", check=False)
        assert b"Permission denied" in done.stderr
    assert qubes.detach(stick).code == 0


def test_what_a_dead_exporter_left(qubes: Qubes, stick: str) -> None:
    assert qubes.attach(stick).code == 0
    kill(qubes.backend, "export")
    state = status(qubes.backend)
    assert [device["state"] for device in state["devices"]] == ["left over"]
    (left,) = state["leftovers"]
    assert (left["role"], left["device"], left["peer"]) == ("export", stick, "work")
    assert "'qubes-usb-proxy repair' cleans that up" in tool(qubes.backend, "status").text
    code, ((finding),) = doctor(qubes.backend)
    assert (code, finding["repair"]) == (7, "qubes-usb-proxy repair")
    done = tool(qubes.backend, "repair")
    assert done.code == 7
    assert b"sudo qubes-usb-proxy repair" in done.stderr and done.stderr.count(b"\n") == 1
    assert status(qubes.backend)["leftovers"]
    done = tool(qubes.backend, "repair", "root")
    assert (done.code, done.text) == (0, f"Cleaned up: {stick}, attached to work.")
    assert tool(qubes.backend, "repair", "root").text == "Nothing is left over."
    assert qubes.driver(stick) == "usb"
    assert doctor(qubes.backend) == (0, [])


def test_what_a_dead_importer_left(qubes: Qubes, stick: str) -> None:
    assert qubes.attach(stick).code == 0
    kill(qubes.frontend, "import")
    (left,) = status(qubes.frontend)["leftovers"]
    assert (left["role"], left["device"], left["peer"]) == ("import", stick, "sys-usb")
    assert doctor(qubes.frontend)[0] == 7
    done = tool(qubes.frontend, "repair", "root")
    assert (done.code, done.text) == (0, f"Cleaned up: sys-usb:{stick}, attached to this qube.")
    assert status(qubes.frontend)["leftovers"] == []
    assert qubes.await_clean() == []


@pytest.mark.parametrize("how", ["backend", "frontend", "frontend's name"])
def test_detach(qubes: Qubes, stick: str, how: str) -> None:
    assert qubes.attach(stick).code == 0
    guest, name, said = qubes.frontend, f"sys-usb:{stick}", "is detached from this qube."
    if how == "backend":
        guest, name, said = qubes.backend, stick, "is back in this qube."
    asked = name
    if how == "frontend's name":
        (port,) = status(guest)["attachments"]
        asked = port["here"]
    done = tool(guest, f"detach {asked}")
    assert done.code == 7
    assert f"run: sudo qubes-usb-proxy detach {name}" in done.stderr.decode()
    done = tool(guest, f"detach {asked}", "root")
    assert (done.code, done.text, done.stderr) == (0, f"{name} {said}", b"")
    assert tool(guest, f"detach {name}", "root").code == 5
    assert qubes.await_clean() == []


def test_watch(qubes: Qubes, stick: str) -> None:
    """Every change is shown; between them nothing runs."""
    backend, frontend = qubes.backend, qubes.frontend
    calls = []
    for guest in (backend, frontend):
        command = "exec qubes-usb-proxy status --watch --json > /tmp/watch"
        calls.append(guest.start_command(f"rm -f /tmp/watch; umask 0; {command}", user="nobody"))
        guest.wait_for("test -s /tmp/watch")

    def last(guest: Guest, wanted: str) -> None:
        guest.wait_for(f"tail -n 1 /tmp/watch | grep -q '{wanted}'")

    last(backend, '"state": "free"')
    for _ in range(2):
        assert qubes.attach(stick).code == 0
        last(backend, '"state": "attached", "peer": "work"')
        last(frontend, '"state": "attached"')
        assert qubes.detach(stick).code == 0
        last(backend, '"state": "free"')
        last(frontend, '"attachments": .., "leftovers": ..}')
    assert qubes.attach(stick).code == 0
    last(backend, '"state": "attached"')
    ends = [(backend, "export"), (frontend, "import")]
    switches = "grep ctxt /proc/$(pgrep -f '[l]aunch qubes-usb-proxy')/status"
    before = backend.run(switches).text
    time.sleep(3)
    assert backend.run(switches).text == before
    kill(*ends[0])
    last(backend, '"leftovers": .{"role": "export"')
    assert tool(backend, "repair", "root").code == 0
    last(backend, '"state": "free".*"leftovers": ..}')
    backend.unplug("stick")
    last(backend, '"devices": .., ')
    for guest, call in zip((backend, frontend), calls, strict=True):
        guest.run("pkill -INT -f '[l]aunch qubes-usb-proxy'")
        assert call.wait(20).code == 0
        states = [json.loads(line) for line in guest.read("/tmp/watch").splitlines()]
        assert all(one != other for one, other in itertools.pairwise(states))


def test_watch_ends_with_its_reader(qubes: Qubes, stick: str) -> None:
    done = qubes.backend.run("qubes-usb-proxy status --watch | head -n 1", user="nobody")
    assert (done.code, done.stderr) == (0, b"")
    assert done.text.startswith("DEVICE")


# The doctor.


def test_all_is_well(qubes: Qubes, stick: str) -> None:
    for guest in (qubes.backend, qubes.frontend):
        assert doctor(guest) == (0, [])
    assert qubes.attach(stick).code == 0
    for guest in (qubes.backend, qubes.frontend):
        assert doctor(guest) == (0, [])
        assert all(line[:2] == "+ " for line in tool(guest, "doctor", "root").text.splitlines())
    assert qubes.detach(stick).code == 0


def test_the_doctor_helps_users_too(qubes: Qubes, stick: str) -> None:
    for guest in (qubes.backend, qubes.frontend):
        code, found = doctor(guest, "nobody")
        assert (code, {finding["level"] for finding in found}) in [(0, set()), (9, {"warning"})]
        assert {finding["repair"] for finding in found} <= {"sudo qubes-usb-proxy doctor"}


@pytest.fixture(scope="module")
def repository(running_lab: Qubes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Our package, and one that stands for qrexec's, where apt finds them in both qubes."""
    folder = tmp_path_factory.mktemp("repository")
    (package,) = PACKAGES.glob("qubes-usb-proxy_*.deb")
    (folder / package.name).write_bytes(package.read_bytes())
    tree = folder / "qubes-core-qrexec"
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/qrexec-client-vm").symlink_to("/usr/lib/lab/launch")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: qubes-core-qrexec\nVersion: 4.3.0\nArchitecture: all\n"
        "Maintainer: The lab <lab@localhost>\nDescription: stand-in of the lab\n"
    )
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, folder], check=True)
    listing = subprocess.run(
        ["apt-ftparchive", "packages", "."], cwd=folder, check=True, capture_output=True
    )
    (folder / "Packages").write_bytes(listing.stdout)
    for guest in (running_lab.backend, running_lab.frontend):
        for path in (*folder.glob("*.deb"), folder / "Packages"):
            guest.push(path, f"/srv/{path.name}")
        source = "/etc/apt/sources.list.d/test.list"
        guest.write(source, "deb [trusted=yes] file:/srv ./\n")
        guest.run(
            f"apt-get -q update -o Dir::Etc::SourceList={source} -o Dir::Etc::SourceParts=-",
            timeout=240,
        )


MODULES = "/lib/modules/$(uname -r)"
KEY = "/qubes-usb-devices/2-1/connected-to"
BREAK = [
    ("frontend", "qrexec", "rm /usr/bin/qrexec-client-vm"),
    ("frontend", "/run/qubes", "mv /run/qubes /run/away"),
    ("backend", "/run/qubes", "chmod 2777 /run/qubes"),
    ("frontend", "/run/qubes", "chown nobody /run/qubes"),
    ("backend", "services", "rm /usr/lib/qubes/usb-reset"),
    ("backend", "services", "rm /etc/qubes-rpc/qubes.USB"),
    ("frontend", "services", "chmod a-x /usr/lib/qubes/usb-import /etc/qubes-rpc/qubes.USBAttach"),
    ("backend", "rpc-config", "echo \"force-user='user'\" > /etc/qubes/rpc-config/qubes.USB"),
    ("backend", "rpc-config", "rm /etc/qubes/rpc-config/qubes.USB"),
    (
        "backend",
        "module",
        "modprobe -r usbip-host; mkdir -p /run/modprobe.d;"
        " echo 'install usbip_host /bin/false' > /run/modprobe.d/x.conf",
    ),
    (
        "frontend",
        "module",
        "modprobe -r vhci-hcd; mkdir -p /etc/modprobe.d;"
        " echo 'install vhci-hcd /bin/false' > /etc/modprobe.d/x.conf",
    ),
    ("backend", "module", f"modprobe -r usbip-host; sed -i /usbip-host/d {MODULES}/modules.dep"),
    (
        "backend",
        "slots",
        "modprobe usbip-host; for n in $(seq 16); do"
        " printf 'add 9-%s' $n > /sys/bus/usb/drivers/usbip-host/match_busid; done",
    ),
    ("backend", "udev rules", "rm /usr/lib/udev/rules.d/80-qubes-usb-reset.rules"),
    ("backend", "udev rules", "ln -s /dev/null /etc/udev/rules.d/80-qubes-usb-reset.rules"),
    ("backend", "QubesDB", "touch /run/lab-qubesdb.off"),
    ("backend", "QubesDB", f"qubesdb-write {KEY} work"),
    ("backend", "locks", "mkdir -p /run/qubes-usb-proxy; chmod 777 /run/qubes-usb-proxy"),
    (
        "frontend",
        "locks",
        "mkdir -p /run/qubes-usb-proxy; echo 1 2 > /run/qubes-usb-proxy/"
        "import-a-2-1.lock; chmod 644 /run/qubes-usb-proxy/*",
    ),
    (
        "backend",
        "leftovers",
        "modprobe usbip-host; cd /sys/bus/usb/drivers;"
        " printf 'add 2-1' > usbip-host/match_busid; echo 2-1 > usb/unbind;"
        " echo 2-1 > usbip-host/bind",
    ),
    ("backend", "suspend", "rm /etc/qubes/suspend-pre.d/usb-detach-all.sh"),
]


@pytest.mark.usefixtures("repository", "stick")
@pytest.mark.parametrize(("side", "check", "command"), BREAK)
def test_what_the_doctor_finds_its_command_repairs(
    qubes: Qubes, side: str, check: str, command: str
) -> None:
    guest: Guest = getattr(qubes, side)
    # In place of the platform's service.
    guest.write("/usr/local/sbin/systemctl", "#!/bin/sh\nrm -f /run/lab-qubesdb.off\n", 0o755)
    guest.run(command)
    for _ in range(3):  # One finding may hide another.
        code, found = doctor(guest)
        if not found:
            break
        assert code in (7, 9)
        for finding in found:
            guest.run(finding["repair"], timeout=240)
        if _ == 0:
            assert check in [finding["check"] for finding in found]
    else:
        pytest.fail(f"still wrong: {found}")
    guest.run("rm -rf /run/away /run/modprobe.d")


@pytest.mark.usefixtures("usbguard")
def test_what_usbguard_thinks(qubes: Qubes) -> None:
    qubes.backend.plug_storage("stick", 1 << 20)
    stick = qubes.bus_id("idProduct=0001", "idVendor")
    (finding,) = about_usbguard(qubes.backend)
    assert f"usbguard blocks USB device {stick}" in finding["text"]
    qubes.backend.run(finding["repair"])
    assert about_usbguard(qubes.backend) == []
    qubes.backend.run("pkill usbguard-daemon")
    (finding,) = about_usbguard(qubes.backend)
    assert finding["repair"] == "systemctl restart usbguard"
    start = "#!/bin/sh\nusbguard-daemon -f -c /run/usbguard/conf\n"
    qubes.backend.write("/usr/local/sbin/systemctl", start, 0o755)
    qubes.backend.run(finding["repair"])
    qubes.backend.wait_for("usbguard list-devices")
    assert about_usbguard(qubes.backend) == []


def about_usbguard(guest: Guest) -> list[dict[str, str]]:
    """What doctor finds of usbguard alone: the buses that it has closed are another finding."""
    code, found = doctor(guest)
    assert code == (9 if found else 0)
    return [finding for finding in found if finding["check"] == "usbguard"]


# The journal.

LISTENER = """
import os, socket
path = "/run/systemd/journal/socket"
os.makedirs(os.path.dirname(path), exist_ok=True)
journald = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journald.bind(path)
while True:
    entry = journald.recv(65536)
    with open("/run/entries", "ab") as file:
        file.write(entry + b"\\n")
"""


@pytest.fixture
def journals(qubes: Qubes) -> Iterator[None]:
    """A socket in either qube, in place of journald, which these have not."""
    calls = []
    for guest in (qubes.backend, qubes.frontend):
        guest.write("/run/listener.py", LISTENER)
        calls.append(guest.start_command("exec python3 /run/listener.py"))
        guest.wait_for("test -S /run/systemd/journal/socket")
    yield
    for guest, call in zip((qubes.backend, qubes.frontend), calls, strict=True):
        call.cancel()
        guest.run("rm -rf /run/systemd /run/entries")


def entry(guest: Guest) -> dict[str, str]:
    """The newest entry."""
    last = guest.read("/run/entries").decode().strip().split("\n\n")[-1]
    return dict(line.split("=", 1) for line in last.splitlines())


@pytest.mark.usefixtures("journals")
def test_how_it_ended_is_told(qubes: Qubes, stick: str) -> None:
    def ended(reasons: tuple[str, str]) -> None:
        for guest, peer, why in zip(
            (qubes.backend, qubes.frontend), ("work", "sys-usb"), reasons, strict=True
        ):
            guest.wait_for(f"tail -n 20 /run/entries | grep -q 'REASON={why}'")
            told = entry(guest)
            assert told["MESSAGE_ID"] == "399dbe57c8bc4740b4a19ead2a600d9d"
            assert (told["USB_PROXY_REASON"], told["USB_PROXY_PEER"]) == (why, peer)
            assert int(told["USB_PROXY_SECONDS"]) >= 0
            guest.run("rm /run/entries")

    here, there = "detached here", "detached there"
    for detach, reasons in ((qubes.detach, (there, here)), (qubes.take_back, (here, there))):
        assert qubes.attach(stick).code == 0
        for guest, role in ((qubes.backend, "exporter"), (qubes.frontend, "importer")):
            guest.wait_for("test -s /run/entries")
            told = entry(guest)
            assert (told["USB_PROXY_ROLE"], told["USB_PROXY_DEVICE"]) == (role, stick)
            assert told["USB_PROXY_PRODUCT"] == "46f4:0001"
        assert detach(stick).code == 0
        ended(reasons)
    assert qubes.attach(stick).code == 0
    qubes.backend.run(f"pkill -{signal.SIGHUP} -f '[l]aunch usb-export'")
    ended(("stopped by a signal", there))
    assert qubes.attach(stick).code == 0
    qubes.backend.run("pkill -9 -f '[l]aunch usb-export'")
    ended(("repaired after a death", there))
    qubes.backend.wait_for(f"readlink /sys/bus/usb/devices/{stick}/driver | grep -q usb$")
    assert qubes.attach(stick).code == 0
    qubes.backend.unplug("stick")
    ended(("unplugged", there))
    assert qubes.attach(stick).code != 0
    assert entry(qubes.backend)["MESSAGE_ID"] == "09c80de5fa1447dc8cf075fee15498a5"
    assert f"USB device {stick} was not attached to work: no" in entry(qubes.backend)["MESSAGE"]
    assert entry(qubes.frontend)["USB_PROXY_REASON"] == "failed"
