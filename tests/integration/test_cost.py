# SPDX-License-Identifier: GPL-2.0-or-later
"""What an attached device costs: nothing but memory."""

from tests.lab.guests import Guest
from tests.lab.qubes import Qubes

OWN_KIB = 4000
"""Beyond an interpreter alone; what its end needs is loaded before a program sleeps, as an upgrade
may replace it."""

BARE = "python3 -IS -c 'print(open(\"/proc/self/status\").read())'"


def resident(guest: Guest) -> str:
    """The pid of the Python process that stays in a guest."""
    return guest.run("pgrep -f '^/usr/bin/python3 .*launch usb-(export|import) '").text


def switches(guest: Guest, pid: str) -> str:
    return guest.run(f"grep ctxt /proc/{pid}/status").text


def test_no_system_call_and_no_wakeup_under_traffic(qubes: Qubes) -> None:
    stick = qubes.plug_storage("stick", 4 << 20)
    assert qubes.attach(stick).code == 0
    qubes.frontend.wait_for("test -b /dev/sda")
    assert qubes.connected_to(stick) == b"work"
    guests = [qubes.backend, qubes.frontend]
    pids = [resident(guest) for guest in guests]
    before = [switches(guest, pid) for guest, pid in zip(guests, pids, strict=True)]
    traffic = (
        "end=$(($(date +%s) + 10)); n=0; while [ $(date +%s) -lt $end ]; do"
        " dd if=/dev/sda of=/dev/null bs=1M iflag=direct 2>/dev/null"
        " && n=$((n + 4)); done; echo $n"
    )
    assert int(qubes.frontend.run(traffic).text) > 0
    assert [switches(guest, pid) for guest, pid in zip(guests, pids, strict=True)] == before
    # The same under strace, which itself wakes them once when it comes and once when it goes.
    traced = [
        guest.start_command(f"timeout -s INT 15 strace -c -f -p {pid} -o /tmp/strace; true")
        for guest, pid in zip(guests, pids, strict=True)
    ]
    assert int(qubes.frontend.run(traffic).text) > 0
    for guest, call in zip(guests, traced, strict=True):
        assert b" attached" in call.wait(60).stderr
        table = guest.read("/tmp/strace").decode()
        calls = [line.split()[-1] for line in table.splitlines() if line[:6].strip()[:1].isdigit()]
        assert [name for name in calls if name not in ("restart_syscall", "total")] == [], table
    for guest, pid in zip(guests, pids, strict=True):
        kib, bare = (
            int(guest.run(f"{shows} | grep VmRSS").text.split()[1])
            for shows in (f"cat /proc/{pid}/status", BARE)
        )
        print(f"{guest.name}: {kib} KiB resident, {bare} KiB without the program")
        assert kib < bare + OWN_KIB
    assert qubes.detach(stick).code == 0
