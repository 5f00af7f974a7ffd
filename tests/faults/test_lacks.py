# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube that lacks something: room in /run, memory, /proc, a module, a command, or a port."""

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.guests import BACKEND, FRONTEND

from .conftest import Faults
from .table import After, Case, each
from .test_death import ANNOUNCED

EXPORT, ATTACH = "qubes.USB", "qubes.USBAttach"
LOCKS, RECORDS = "/run/qubes-usb-proxy", "/run/qubes"
NO_MORE = r"run out of something that every program needs \({}\); end some programs"
NO_ROOM = NO_MORE.format("No space left on device")
NO_MEMORY = "Cannot allocate memory|MemoryError|failed to map segment"
# dom0 cannot be told, so the lock's note stays: a key may be there that the next command removes.
UNTOLD: dict[str, Any] = {"after": After.NEXT_COMMAND, "left_in": BACKEND}
NOT_EVEN_DASH = "/bin/sh: 0: 3: Invalid argument"  # It wants its script to be the tenth.


def spoiled(
    name: str, guest: str, service: str, how: str, told: str, *, announced: str = "", **more: Any
) -> Case:
    """A service that starts in a mount name space of its own, after the shell did `how`."""
    data = {"guest": guest, "service": service, "how": how, "announced": announced}
    return Case("machine", f"{name} in {guest}", service, told, data=data, **more)


def full(folder: str, pages: int) -> str:
    """Shell to make a folder a full file system with room for so many small files."""
    size = f"size={(pages + 1) * 4}k"
    return f"mount -t tmpfs -o {size},mode=755 none {folder}; echo full > {folder}/full"


def empty(command: str) -> str:
    """Shell to take a command away."""
    return f"mount --bind /dev/null {command}"


READ_ONLY = "mount -t tmpfs -o ro none {}"
NO_MODULE = "mount -t tmpfs none /usr/lib/modules"
SYS_READ_ONLY = "mount -o remount,bind,ro /sys"
"""As systemd's ProtectKernelTunables= does."""
IS_READ_ONLY = f"cannot use {LOCKS}/.*: Read-only file system; this needs root and a writable /run"
NOT_INSTALLED = "the command {} is not installed; install the package that has it"
NO_PROC = "/proc is not mounted; this qube is broken"
LACKS_MODULE = r"the kernel module {} cannot be loaded \(.*not found.*\); use a kernel with USB/IP"

SPOILED = [
    spoiled("no room for locks", BACKEND, EXPORT, full(LOCKS, 0), NO_ROOM, short=True),
    spoiled("no room for locks", FRONTEND, ATTACH, full(LOCKS, 0), NO_ROOM),
    spoiled(
        "no room for a record",
        FRONTEND,
        ATTACH,
        full(RECORDS, 0),
        "",  # A record is a hint for other programs: that it is missing is a warning.
        short=True,
    ),
    spoiled("locks are read-only", BACKEND, EXPORT, READ_ONLY.format(LOCKS), IS_READ_ONLY),
    spoiled("locks are read-only", FRONTEND, ATTACH, READ_ONLY.format(LOCKS), IS_READ_ONLY),
    spoiled(
        "records are read-only",
        FRONTEND,
        ATTACH,
        READ_ONLY.format(RECORDS),
        "",
    ),
    *(
        spoiled(
            f"the kernel's files are read-only{announced and ', announced,'}",
            guest,
            service,
            SYS_READ_ONLY,
            "this qube's /sys is read-only; run: sudo mount -o remount,rw /sys",
            short=bool(announced),
            announced=announced,
        )
        for guest, service, announced in (
            (BACKEND, EXPORT, ""),
            (FRONTEND, ATTACH, ""),
            (FRONTEND, ATTACH, ANNOUNCED),
        )
    ),
    spoiled("no /proc", BACKEND, EXPORT, "umount -l /proc", NO_PROC, short=True),
    spoiled("no /proc", FRONTEND, ATTACH, "umount -l /proc", NO_PROC),
    spoiled(
        "no kernel module",
        BACKEND,
        EXPORT,
        f"rmmod usbip-host; {NO_MODULE}",
        LACKS_MODULE.format("usbip-host"),
    ),
    spoiled(
        "no kernel module",
        FRONTEND,
        ATTACH,
        f"rmmod vhci-hcd; {NO_MODULE}",
        LACKS_MODULE.format("vhci-hcd"),
    ),
    spoiled(
        "no modprobe",
        FRONTEND,
        ATTACH,
        f"rmmod vhci-hcd; {empty('/usr/bin/kmod')}",
        NOT_INSTALLED.format("modprobe"),
    ),
    spoiled(
        "no qrexec-client-vm",
        FRONTEND,
        ATTACH,
        empty("/usr/bin/qrexec-client-vm"),
        NOT_INSTALLED.format("qrexec-client-vm"),
    ),
    *(
        spoiled(
            f"{size} kB of memory",
            guest,
            service,
            f"ulimit -v {size}",
            NO_MEMORY,
            may_succeed=size > 12000,
        )
        for size in (9000, 14500, 17000)
        for guest, service in ((BACKEND, EXPORT), (FRONTEND, ATTACH))
    ),
    *(
        spoiled(
            f"{number} file descriptors",
            guest,
            service,
            f"ulimit -n {number}",
            NOT_EVEN_DASH if number < 10 and guest == BACKEND else "Too many open files",
            may_succeed=number > 10,
            **(UNTOLD if number > 10 and guest == BACKEND else {}),
        )
        for number in (9, 12, 14)
        for guest, service in ((BACKEND, EXPORT), (FRONTEND, ATTACH))
    ),
    spoiled("no file may grow", BACKEND, EXPORT, "ulimit -f 0", NO_MORE.format("File too large")),
    spoiled("no file may grow", FRONTEND, ATTACH, "ulimit -f 0", NO_MORE.format("File too large")),
]

NO_QUBESDB = Case(
    "machine",
    "QubesDB does not answer in sys-usb",
    told=r"qubesdb-write failed \(cannot connect\), so dom0 cannot see what is attached; restart",
    **UNTOLD,
)
FULL_RUN = [
    Case(
        "machine",
        f"/run of work is full but for {pages} pages",
        told=NO_ROOM,
        may_succeed=pages > 1,
        data={"pages": str(pages)},
    )
    for pages in range(4)
]
PORTS = [
    Case(
        "machine",
        f"all {speed} ports of work are in use",
        told=rf"all \d+ {speed} USB ports of this qube are in use; detach a device first",
        data={"speed": speed},
    )
    for speed in ("SuperSpeed", "high-speed")
]
CASES = [*SPOILED, NO_QUBESDB, *FULL_RUN, *PORTS]


@pytest.fixture
def spoil(faults: Faults) -> Iterator[Callable[[str, str, str], None]]:
    """Make a service of a guest start in a mount name space in which a shell did something."""

    def put(guest: str, service: str, how: str) -> None:
        then = f'exec /etc/qubes-rpc/{service} "$@"'
        script = f"{how}\n{then}\n"
        program = f'#!/bin/sh\nexec unshare --mount /bin/sh -c {shlex.quote(script)} sh "$@"\n'
        faults.guest(guest).write(f"/usr/local/etc/qubes-rpc/{service}", program, 0o755)

    yield put
    faults.run_both("rm -f /usr/local/etc/qubes-rpc/*")


@each(SPOILED)
def test_what_a_service_needs_is_missing(
    faults: Faults, case: Case, spoil: Callable[[str, str, str], None]
) -> None:
    stick = faults.stick()
    faults.run_both(f"mkdir -p {LOCKS}")
    spoil(case.data["guest"], case.data["service"], case.data["how"])
    done = faults.attach(stick, case.data["announced"])
    faults.run_both("rm -f /usr/local/etc/qubes-rpc/*")
    if done.code == 0:
        assert faults.detach(stick).code == 0
    faults.backend.wait_for(f"test -e /sys/bus/usb/drivers/usb/{stick}")
    faults.check(case, done)


@each([NO_QUBESDB])
def test_without_qubesdb(
    faults: Faults, case: Case, spoil: Callable[[str, str, str], None]
) -> None:
    stick = faults.stick()
    faults.backend.write("/run/broken", "#!/bin/sh\necho cannot connect >&2; exit 1\n", 0o755)
    how = "mount --bind /run/broken /usr/lib/lab/qubesdb"
    spoil(BACKEND, EXPORT, how)
    done = faults.attach(stick)
    faults.backend.run("rm /run/broken")
    faults.run_both("rm -f /usr/local/etc/qubes-rpc/*")
    assert faults.driver(stick) == "usb"
    faults.check(case, done)


@each(FULL_RUN)
def test_full_run(faults: Faults, case: Case) -> None:
    stick = faults.stick()
    free = int(case.data["pages"]) * 4
    faults.frontend.run(
        f"size=$(($(df --output=used /run | tail -n 1) + {free}));"
        " mount -o remount,size=${size}k /run"
    )
    try:
        done = faults.attach(stick)
        if done.code == 0:
            assert faults.detach(stick).code == 0
    finally:
        faults.frontend.run("mount -o remount,size=50% /run")
    faults.check(case, done)


# Plugs something that never answers into every free port of one speed, and says how many.
FILL = """
import socket, time
folder = "/sys/devices/platform/vhci_hcd.0/"
half, speed = {half!r}, {speed}
held, count, controller = [], 0, 0
while True:
    try:
        lines = open(folder + (f"status.{{controller}}" if controller else "status")).readlines()
    except FileNotFoundError:
        break
    for line in lines[1:]:
        fields = line.split()
        if fields[0] == half and fields[2] == "004":
            pair = socket.socketpair()
            held.append(pair)
            text = f"{{int(fields[1])}} {{pair[0].fileno()}} 131074 {{speed}}"
            with open(folder + "attach", "w") as file:
                file.write(text)
            count += 1
    controller += 1
open("/run/filled", "w").write(str(count))
time.sleep(1000)
"""


@each(PORTS)
def test_all_ports_in_use(faults: Faults, case: Case) -> None:
    is_super = case.data["speed"] == "SuperSpeed"
    stick = faults.stick() if is_super else faults.plug_storage("slow", bus="ehci.0")
    faults.frontend.run("modprobe vhci-hcd; rm -f /run/filled")
    program = FILL.format(half="ss" if is_super else "hs", speed=5 if is_super else 3)
    filler = faults.frontend.start_command(f"exec python3 -c {shlex.quote(program)}")
    try:
        faults.frontend.wait_for("test -s /run/filled", 60)
        assert faults.frontend.read("/run/filled") == b"120"
        done = faults.attach(stick)
    finally:
        filler.cancel()
    if not is_super:
        faults.backend.unplug("slow")
    faults.frontend.wait_for(
        "! cat /sys/devices/platform/vhci_hcd.0/status* | grep -v hub | grep -vq ' 004 '", 120
    )
    faults.check(case, done)
    assert b"all 120 " in done.stderr
