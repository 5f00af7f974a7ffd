# SPDX-License-Identifier: GPL-2.0-or-later
"""qubes-usb-proxy: its words, what it shows, and what it does with root's rights and without."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import termios
from typing import TYPE_CHECKING, Any

import pytest

from usb_proxy.commands.qubes_usb_proxy import COMMANDS
from usb_proxy.errors import ExitCode
from usb_proxy.frontend import records
from usb_proxy.idents import Attachment
from usb_proxy.locks import Lock
from usb_proxy.tool import help as help_text
from usb_proxy.tool.screen import Screen

from .processes import Child, hold, leave, program, run, wait_for

if TYPE_CHECKING:
    from .fake_kernel import FakeKernel

DEVID = 0x20005


@pytest.fixture(autouse=True)
def locks_of_the_kernel(kernel: FakeKernel) -> None:
    """The kernel's own list: the locks in these tests are real ones."""
    (kernel.tree / "proc").mkdir()
    (kernel.tree / "proc/locks").symlink_to("/proc/locks")


def tool(kernel: FakeKernel, *words: str) -> int:
    return run(kernel, "qubes-usb-proxy", *words)


def status(kernel: FakeKernel) -> dict[str, Any]:
    """The state, which has to be as the manual says."""
    assert tool(kernel, "status", "--json") == ExitCode.OK
    shown = kernel.shown()
    assert shown.isascii() and shown.count("\n") == 1
    state = json.loads(shown)
    validate(state, SCHEMA)
    return dict(state)


TEXT = str | None
TIME = int | None
STATES = {"free", "attached", "left over", "used by another program"}
ROLES = {"export", "import"}
SCHEMA = {
    "version": {1},
    "devices": [
        {"device": str, "vendor": str, "product": str, "name": str, "speed": str, "driver": TEXT,
         "state": STATES, "peer": TEXT, "since": TIME, "used_by": [str]}
    ],
    "attachments": [
        {"backend": TEXT, "device": TEXT, "port": int, "state": STATES - {"free"}, "since": TIME,
         "here": TEXT, "vendor": TEXT, "product": TEXT, "name": TEXT, "speed": TEXT,
         "unannounced": [str]}
    ],
    "leftovers": [{"role": ROLES, "device": str, "peer": TEXT, "since": TIME}],
}  # fmt: skip
"""What qubes-usb-proxy(8) says of the format."""


def validate(value: Any, schema: Any) -> None:
    """Compare a value with its description: members, a list's only kind, choices, or a type."""
    if isinstance(schema, dict):
        assert set(value) == set(schema)
        for name, inner in schema.items():
            validate(value[name], inner)
    elif isinstance(schema, list):
        for each in value:
            validate(each, schema[0])
    elif isinstance(schema, set):
        assert value in schema
    else:
        assert isinstance(value, schema)


def told(kernel: FakeKernel, name: str, note: str, text: str) -> Child:
    """A process that holds a lock and told what for."""
    ready, tell = os.pipe()

    def body() -> None:
        lock = Lock(kernel, name)
        assert lock.acquire(0)
        lock.note(note)
        lock.tell(text)
        os.write(tell, b"\0")
        kernel.wait({}, None)

    child = Child(body)
    assert os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    return child


# Words.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "a command is needed"),
        (("stat",), "'stat' is not a command"),
        (("--json",), "'--json' is not a command"),
        (("\N{SNOWMAN}\x1b[31m" * 40,), "is not a command"),
        (("status", "--xml"), "status has no option '--xml'"),
        (("status", "2-1"), "status takes no name"),
        (("doctor", "--watch"), "doctor has no option '--watch'"),
        (("detach",), "detach takes one device"),
        (("detach", "2-1", "2-2"), "detach takes one device"),
        (("detach", "../2-1"), "names no USB device"),
        (("detach", "../x:2-1"), "is not the name of a qube"),
        (("detach", "sys-usb:"), "names no USB device"),
        (("repair", "2-1"), "repair takes no name"),
    ],
)
def test_a_wrong_command_line(kernel: FakeKernel, words: tuple[str, ...], said: str) -> None:
    assert tool(kernel, *words) == ExitCode.REQUEST
    assert said in kernel.said() and kernel.said().count("\n") == 1
    assert kernel.said().isascii() and kernel.said()[:-1].isprintable()
    assert kernel.shown() == ""


@pytest.mark.parametrize("words", [("help",), ("--help",), ("-h",), ("help", "nonsense")])
def test_help(kernel: FakeKernel, words: tuple[str, ...]) -> None:
    assert tool(kernel, *words) == ExitCode.OK
    shown = kernel.shown()
    for name in COMMANDS:
        assert f"qubes-usb-proxy {name}" in shown and f"\n{name}:\n" in shown
    assert max(len(line) for line in shown.splitlines()) <= 90


@pytest.mark.parametrize("name", COMMANDS)
def test_help_about_one_command(kernel: FakeKernel, name: str) -> None:
    shown = []
    for words in ((name, "--help"), ("help", name)):
        assert tool(kernel, *words) == ExitCode.OK
        shown.append(kernel.shown())
    assert shown[0] == shown[1] and shown[0].startswith(f"qubes-usb-proxy {name}")
    assert [o for o in help_text.OPTIONS if o in shown[0]] == sorted(COMMANDS[name][0])
    assert set(help_text.COMMANDS) == set(help_text.SYNOPSIS) - {"help"} == set(COMMANDS)


# The state.


def test_an_empty_machine(kernel: FakeKernel) -> None:
    empty = {"version": 1, "devices": [], "attachments": [], "leftovers": []}
    assert status(kernel) == empty
    assert tool(kernel, "status") == ExitCode.OK
    assert kernel.shown() == "No USB device is plugged into this qube or attached to it.\n"


def test_the_devices_of_a_backend(kernel: FakeKernel) -> None:
    kernel.privileged = False
    kernel.add_vhci()
    kernel.plug("1-1", bDeviceClass="09")
    kernel.plug("10-1", below="platform/vhci_hcd.0/usb10")
    for number, bus_id in enumerate(("1-1.1", "1-1.2", "1-1.3", "1-1.4"), 1):
        driver = "usb" if number == 1 else "usbip-host"
        name = f"Stick{number} \N{SNOWMAN} \x1b[2J\r\n" + "x" * 99
        kernel.plug(bus_id, driver, manufacturer="ACME", product=name)
    with told(kernel, "export-1-1.2", "1", "work"):
        with told(kernel, "export-1-1.3", "1", "home"):
            pass
        devices = status(kernel)["devices"]
        assert [(d["device"], d["state"], d["peer"], d["since"] is None) for d in devices] == [
            ("1-1.1", "free", None, True),
            ("1-1.2", "attached", "work", False),
            ("1-1.3", "left over", "home", False),
            ("1-1.4", "used by another program", None, True),
        ]
        assert devices[0]["name"].startswith("ACME Stick1 ??? [2J xxx")
        assert len(devices[0]["name"]) == 60
        assert tool(kernel, "status") == ExitCode.OK
        shown = kernel.shown()
    when = r"20\d\d-\d\d-\d\d \d\d:\d\d"
    assert re.search(rf"^1-1\.2   12ab:00cd  ACME .*  work  +{when}$", shown, re.M)
    assert re.search(r"^1-1\.3, attached to home  20", shown, re.M)
    assert "\x1b" not in shown and shown.isascii()
    assert kernel.written == []


def test_a_device_that_the_kernel_keeps_locked(kernel: FakeKernel) -> None:
    """Whoever asks for its name waits for its lock, so it has none yet."""
    names = [kernel.plug(bus_id) / "manufacturer" for bus_id in ("1-1.1", "1-1.2")]
    os.mkfifo(names[0])
    names[1].write_text("ACME\n")
    try:
        found = {each["device"]: each["name"] for each in status(kernel)["devices"]}
        assert (found["1-1.1"], found["1-1.2"]) == ("", "ACME")
    finally:
        os.close(os.open(names[0], os.O_RDWR))


def test_interfaces_that_were_not_announced(kernel: FakeKernel) -> None:
    """Those of a device that is judged; another one's are not authorized for other reasons."""
    kernel.add_vhci()
    for number in (0, 1):
        folder = kernel.occupy(number, DEVID + number).folder
        names = {"idVendor": "12ab", "idProduct": "00cd", "speed": "480"}
        for interface, is_authorized in (("1.0", "1"), ("1.1", "0")):
            (folder / f"{folder.name}:{interface}").mkdir()
            names |= {
                f"{folder.name}:{interface}/{name}": text
                for name, text in (
                    *(("authorized", is_authorized), ("bInterfaceClass", "03")),
                    *(("bInterfaceSubClass", "01"), ("bInterfaceProtocol", "02")),
                )
            }
        for name, text in names.items():
            (folder / name).write_text(f"{text}\n")
        (kernel.usb / "devices" / folder.name).symlink_to(folder)
    (kernel.tree / "run/qubes-usb-proxy").mkdir()
    kernel.make_file("/run/qubes-usb-proxy/announced-10-1", "sys-usb-2-1")
    found = {port["here"]: port["unannounced"] for port in status(kernel)["attachments"]}
    assert found == {"10-1": ["10-1:1.1 (030102)"], "10-2": []}
    assert tool(kernel, "status") == ExitCode.OK
    said = (
        "\nInterface 10-1:1.1 (030102) was not announced by dom0, so it has no driver [UP-642].\n"
    )
    assert said in kernel.shown()


def test_the_ports_of_a_frontend(kernel: FakeKernel) -> None:
    kernel.add_vhci()
    for number in (0, 1, 2, 3):
        folder = kernel.occupy(number, DEVID + number).folder
        for name, text in (("idVendor", "12ab"), ("idProduct", "00cd"), ("speed", "480")):
            (folder / name).write_text(f"{text}\n")
        (kernel.usb / "devices" / folder.name).symlink_to(folder)
    records.write(kernel, Attachment("old-usb-0x12ab.0x00cd"), 2)
    for planted in ("$(reboot)-2-1", "x", "../y-2-1"):
        name = f"usb-import-{planted}.state".replace("/", "_")
        (kernel.tree / "run/qubes" / name).write_text("3\n")
    leave(kernel, "import-sys-usb-9-9", "")
    with told(kernel, "import-z-9-9", "0 1", "0"), told(kernel, "import-y-9-9", "", "3"):
        pass
    with told(kernel, "import-sys-usb-2-1", f"0 {DEVID}", "0"):
        with told(kernel, "import-a-b-2-1.4", f"1 {DEVID + 1}", "1"):
            pass
        state = status(kernel)
        ports = state["attachments"]
        assert [(p["backend"], p["device"], p["port"], p["state"]) for p in ports] == [
            ("sys-usb", "2-1", 0, "attached"),
            ("a-b", "2-1.4", 1, "left over"),
            ("old-usb", "0x12ab.0x00cd", 2, "used by another program"),
            (None, None, 3, "used by another program"),
        ]
        assert ports[0]["here"] == "10-1" and ports[0]["speed"] == "480"
        dead = [(left["peer"], left["device"]) for left in state["leftovers"]]
        assert dead == [("a-b", "2-1.4"), ("z", "9-9")]
        assert tool(kernel, "status") == ExitCode.OK
    shown = kernel.shown()
    assert "old-usb:0x12ab.0x00cd (used by another program)  12ab:00cd" in shown
    assert "reboot" not in shown and kernel.written == []


def test_programs_of_a_version_that_told_nothing(kernel: FakeKernel) -> None:
    kernel.add_vhci()
    kernel.plug("1-1.4", "usbip-host")
    kernel.occupy(2, DEVID)
    records.write(kernel, Attachment("sys-usb-2-1"), 2)
    with hold(kernel, "export-1-1.4", "1"), hold(kernel, "import-sys-usb-2-1", f"2 {DEVID}"):
        state = status(kernel)
    ((device,), (port,)) = state["devices"], state["attachments"]
    assert (device["state"], device["peer"]) == ("attached", None)
    assert (port["state"], port["backend"], port["device"]) == ("attached", "sys-usb", "2-1")


def test_a_folder_that_cannot_be_looked_into(kernel: FakeKernel) -> None:
    (kernel.tree / "run/qubes-usb-proxy").write_text("")
    for command in ("status", "doctor"):
        assert tool(kernel, command) == ExitCode.SYSTEM
        assert "Traceback" not in kernel.said() + kernel.shown()
    assert "cannot look into /run/qubes-usb-proxy: Not a directory" in kernel.said()


# The terminal.


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_table_is_no_wider_than_its_terminal(kernel: FakeKernel, width: int) -> None:
    leader, terminal = pty.openpty()
    try:
        termios.tcsetwinsize(terminal, (24, width))
        kernel.output = terminal
        screen = Screen(kernel)
        assert screen.width == width
        rows = [["2-1", "12ab:00cd", "A name of a device " * 3, "work", "2026-11-22 12:00"]]
        table = screen.table(["DEVICE", "ID", "NAME", "ATTACHED TO", "SINCE"], rows * 2)
    finally:
        os.close(leader)
        os.close(terminal)
        kernel.output = os.open(kernel.tree / "stdout", os.O_RDWR)
    plain = re.sub(r"\x1b\[\d*m", "", table)
    assert max(map(len, plain.splitlines())) <= width
    assert table.startswith("\x1b[1mDEVICE")
    if width == 200:
        assert rows[0][2].strip() in plain
    if width == 80:
        head, row, _ = plain.splitlines()
        assert row.index("work") == head.index("ATTACHED TO")
        assert "..." in row and row.endswith("2026-11-22 12:00")


def test_json_is_json(kernel: FakeKernel) -> None:
    value = {"a": [], "b": {}, "c": [1, -2, None, "\"\\ \\n'", {"d": ""}], "e": {"f": [0]}}
    screen = Screen(kernel)
    screen.write_json(value)
    assert kernel.shown() == json.dumps(value) + "\n"
    screen.write_json(["\n\x1b\N{SNOWMAN}"])
    assert kernel.shown() == '["\\n\\u001b\\u2603"]\n'


def test_nobody_reads_the_output(kernel: FakeKernel) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(kernel.output)
    kernel.output = writer
    assert tool(kernel, "status") == ExitCode.OK
    with program(kernel, "qubes-usb-proxy", "status", "--watch") as watch:
        assert watch.code() == ExitCode.OK
    assert kernel.said() == ""


# Watching.


@pytest.mark.parametrize("has_folder", [True, False])
def test_watch_shows_each_change_until_it_is_stopped(kernel: FakeKernel, has_folder: bool) -> None:
    kernel.plug("1-1.4")
    if has_folder:
        leave(kernel, "export-9-9", "")
    seen: list[str] = []

    def shows(text: str) -> bool:
        lines = (kernel.tree / "stdout").read_text().splitlines()
        seen[:] = [line for line in lines if line.startswith("{")]
        return bool(seen) and text in seen[-1]

    output, kernel.output = kernel.output, os.open(kernel.tree / "stdout", os.O_RDWR | os.O_APPEND)
    os.close(output)
    with program(kernel, "qubes-usb-proxy", "status", "--watch", "--json") as watch:
        wait_for(lambda: shows('"state": "free"'), "the first state")
        with told(kernel, "export-1-1.4", "1", "work"):
            wait_for(lambda: shows('"peer": "work"'), "the attachment")
        wait_for(lambda: shows('"state": "left over"'), "the death")
        assert tool(kernel, "repair") == ExitCode.OK
        wait_for(lambda: shows('"state": "free"'), "the repair")
        os.kill(watch.pid, signal.SIGINT)
        assert watch.code() == ExitCode.OK
    assert len(seen) == len(set(seen)) + 1, "the first state is also the last, and no other twice"


# Root's rights.


def test_detach_and_repair(kernel: FakeKernel) -> None:
    kernel.add_vhci()
    kernel.plug("1-1.4")
    folder = kernel.occupy(2, DEVID).folder
    for name, text in (("idVendor", "12ab"), ("idProduct", "00cd"), ("speed", "480")):
        (folder / name).write_text(f"{text}\n")
    (kernel.usb / "devices" / folder.name).symlink_to(folder)
    assert tool(kernel, "detach", "1-1.4") == ExitCode.NOT_ATTACHED
    assert tool(kernel, "detach", "sys-usb:1-1.4") == ExitCode.NOT_ATTACHED
    with hold(kernel, "export-1-1.4", release=True) as exporter:
        assert tool(kernel, "detach", "1-1.4") == ExitCode.OK
        assert exporter.code() == 0
    assert kernel.shown() == "1-1.4 is back in this qube.\n"
    with told(kernel, "import-sys-usb-3-1", f"2 {DEVID}", "2"):
        assert tool(kernel, "detach", folder.name) == ExitCode.OK
    assert kernel.shown() == "sys-usb:3-1 is detached from this qube.\n"
    assert kernel.used() == []
    with told(kernel, "export-1-1.4", "1", "work"), told(kernel, "import-sys-usb-2-1", "0 1", "0"):
        pass
    assert tool(kernel, "repair") == ExitCode.OK
    assert kernel.shown() == (
        "Cleaned up: 1-1.4, attached to work.\nCleaned up: sys-usb:2-1, attached to this qube.\n"
    )
    assert tool(kernel, "repair") == ExitCode.OK
    assert (kernel.shown(), kernel.locks()) == ("Nothing is left over.\n", [])


WORDS = (("detach", "1-1.4"), ("detach", "sys-usb:0x12ab.0x00cd"), ("repair",))


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("code", [0, 5, 126, 127, None])
def test_polkit_is_asked_for_who_is_not_root(
    kernel: FakeKernel, words: tuple[str, ...], code: int | None
) -> None:
    kernel.privileged = False
    if code is not None:
        kernel.command("pkexec", f"exit {code}")
    expected = code if code in (0, 5) else ExitCode.SYSTEM
    assert tool(kernel, *words) == expected
    if code is not None:
        assert kernel.calls("pkexec") == [["/usr/bin/qubes-usb-proxy", *words]]
    if expected == ExitCode.SYSTEM:
        assert kernel.said().count("\n") == 1
        assert f"; run: sudo qubes-usb-proxy {' '.join(words)} [UP-72" in kernel.said()
