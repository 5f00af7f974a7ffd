# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach and detach as the user asks for them, and what the user reads."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from qubes.device_protocol import DeviceAssignment, Port, VirtualDevice

from tests.dom0.clock import run
from tests.dom0.world import ROOT, World
from usb_proxy import qrexec
from usb_proxy.commands import usb_attach
from usb_proxy.dom0 import services
from usb_proxy.dom0.device import USBDevice
from usb_proxy.dom0.qubesd import (
    DeviceAlreadyAttached,
    DeviceNotAssigned,
    QubesException,
    QubesValueError,
    QubesVMNotRunningError,
    UnrecognizedDevice,
)
from usb_proxy.dom0.requests import AlreadyAttached, NotAttached


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    for port in ("2-1", "1-1_4"):
        world.usb.untrusted_qdb[f"{ROOT}/{port}/desc"] = b"1050:0407"
    world.load()
    return world


def test_the_service_gives_up_before_dom0_does() -> None:
    longest = usb_attach.ATTACH_SECONDS + usb_attach.END_SECONDS + qrexec.REQUEST_SECONDS
    assert longest < services.ATTACH_SECONDS


def test_there_and_back(world: World) -> None:
    async def story() -> None:
        await world.attach(world.work, "1-1.4")
        assert world.holder("1-1.4") == "work"
        await world.detach(world.work, "1-1.4")
        assert world.holder("1-1.4") is None

    run(story())
    assert world.calls == ["work qubes.USBAttach sys-usb 1-1.4", "sys-usb qubes.USBDetach 1-1.4"]
    assert not world.allowed()


def test_a_stub_domain(world: World) -> None:
    world.work.virt_mode = "hvm"
    world.work.features.check_with_template = lambda feature, _: feature == "stubdom-qrexec"
    run(world.attach(world.work))
    assert world.calls == ["work-dm qubes.USBAttach sys-usb 2-1"]
    assert world.holder() == "work"


@pytest.mark.parametrize("lag", [0.0, 0.3, 2.0])
def test_moving_at_once(world: World, lag: float) -> None:
    world.lag = lag

    async def story() -> None:
        for _ in range(5):
            await world.attach(world.work)
            await world.detach(world.work)
            await world.attach(world.home)
            assert world.holder() == "home"
            await world.detach(world.home)

    run(story())
    told = world.news()
    assert set(told.values()) == {5}
    assert len(told) == 4


def test_what_is_refused(world: World) -> None:
    async def refused(kind: type[Exception], sentence: str, **options: str) -> None:
        with pytest.raises(kind, match=sentence):
            await world.attach(world.work, **options)
        assert world.calls == []

    async def story() -> None:
        await refused(QubesValueError, "no options such as 'read-only'", **{"read-only": "yes"})
        with pytest.raises(QubesException, match="cannot be attached to dom0"):
            await world.attach(world.dom0)
        with pytest.raises(QubesException, match="in sys-usb already"):
            await world.attach(world.usb)
        for state in ("Paused", "Suspended"):
            world.usb.state = state
            await refused(QubesException, "sys-usb is paused or suspended")
        world.usb.state = "Running"
        world.work.state = "Halted"
        await refused(QubesVMNotRunningError, "not running")
        world.work.state = "Running"
        world.usb.untrusted_qdb[f"{ROOT}/2-1/connected-to"] = b"home"
        await refused(DeviceAlreadyAttached, "attached to home already")
        with pytest.raises(DeviceNotAssigned):
            await world.detach(world.work)

    run(story())


def test_another_device_in_the_port(world: World) -> None:
    async def story() -> None:
        asked_for = world.device()
        assert asked_for.device_id == "1050:0407::?******"
        world.usb.untrusted_qdb[f"{ROOT}/2-1/desc"] = b"dead:beef"
        with pytest.raises(UnrecognizedDevice, match="not there any more"):
            await world.ext.attachments.attach(world.work, asked_for)
        assert world.calls == []

    run(story())


def test_two_at_once(world: World) -> None:
    """Of one device one wins; different ones do not wait for each other."""

    async def story() -> None:
        results = await asyncio.gather(
            world.attach(world.work), world.attach(world.home), return_exceptions=True
        )
        assert [type(result) for result in results] == [type(None), AlreadyAttached]
        results = await asyncio.gather(
            world.detach(world.work), world.detach(world.work), return_exceptions=True
        )
        assert [type(result) for result in results] == [type(None), NotAttached]
        started = asyncio.get_running_loop().time()
        await asyncio.gather(world.attach(world.work), world.attach(world.home, "1-1.4"))
        assert asyncio.get_running_loop().time() - started < 1.5

    run(story())
    told = world.news()
    assert told["attach work sys-usb:2-1"] == 2
    assert told["detach work sys-usb:2-1"] == told["attach home sys-usb:1-1.4"] == 1
    assert not world.allowed()


@pytest.mark.parametrize(
    ("code", "said", "sentence"),
    [
        (127, b"noise", "qubes-usb-proxy is not installed in work"),
        (126, b"", "the call of qubes.USBAttach in work was refused"),
        (126, b"by\x1b[31m policy", "was refused: by [31m policy"),
        (3, b"no USB device 2-1 is plugged in\n", "work: no USB device 2-1 is plugged in"),
        (1, b"", "qubes.USBAttach in work failed with exit code 1 and gave no reason"),
        (1, b"\x1b]0;\x07a\nb\xff\x00\xe2\x80\xae" * 999, "work: ]0; a b ]0; a b"),
        (1, b"%s%d 100% %(a)s", "work: %s%d 100% %(a)s [UP-913]"),
    ],
)
def test_what_the_user_reads(world: World, code: int, said: bytes, sentence: str) -> None:
    world.failures = [(code, said)]
    with pytest.raises(QubesException) as error:
        run(world.attach(world.work))
    text = str(error.value) % ()  # as qvm-usb does
    assert sentence in text
    assert text.isprintable()
    assert text.isascii()
    assert len(text) < 700
    assert not world.allowed()
    run(world.attach(world.work))


def test_a_service_that_does_not_answer(world: World) -> None:
    world.seconds = 9999
    with pytest.raises(QubesException, match="gave no answer for 125 seconds"):
        run(world.attach(world.work))
    assert not world.allowed()


def test_a_cancelled_request(world: World) -> None:
    async def story() -> None:
        task = asyncio.ensure_future(world.ext.attachments.attach(world.work, world.device()))
        await asyncio.sleep(0.5)
        assert "work" in world.rules.read_text()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not world.allowed()
        await world.attach(world.home)

    run(story())


def test_a_backend_that_cannot_detach_does_not_keep_the_frontend(world: World) -> None:
    async def story() -> None:
        await world.attach(world.work)
        world.failures = [(1, b"hangs")]
        await world.detach(world.work)
        assert world.calls[1:] == [
            "sys-usb qubes.USBDetach 2-1",
            "work qubes.USBDetach sys-usb 2-1",
        ]
        await world.attach(world.work)
        world.failures = [(1, b"hangs"), (1, b"hangs, too")]
        with pytest.raises(
            QubesException, match=r"sys-usb: hangs \[UP-913\]; then: work: hangs, too"
        ):
            await world.detach(world.work)
        world.failures = [(5, b"not attached"), (5, b"not attached")]
        world.before = lambda: world.connect("2-1", None)
        await world.detach(world.work)
        await asyncio.sleep(60)

    run(story())
    told = world.news()
    assert told["attach work sys-usb:2-1"] == told["detach work sys-usb:2-1"] == 2


def test_a_rule_of_a_killed_qubesd_is_removed_at_start(world: World) -> None:
    world.rules.write_text("qubes.USB +2-1 work sys-usb allow user=root\n")
    world.load()
    assert not world.allowed()
    world.rules.unlink()
    world.rules.mkdir()
    (world.rules / "x").touch()
    world.load()
    world.dom0.log.error.assert_called_once()


@pytest.mark.parametrize(
    ("ends", "port", "options", "sentence"),
    [
        (("work", "sys-usb"), "2-1", {"x": "y"}, "no options such as 'x'"),
        (("work", "sys-usb"), "*", {"%s": "y"}, "no options such as '%%s'"),
        (("work", "sys-usb"), "2-1:1.0", {}, "UP-201"),
        (("work", "sys-usb"), "usb1", {}, "UP-202"),
        (("work", "sys-usb"), "../x", {}, "UP-203"),
        (("dom0", "sys-usb"), "2-1", {}, "UP-905"),
        (("sys-usb", "sys-usb"), "*", {}, "UP-906"),
        (("work", "dom0"), "2-1", {}, "UP-940"),
        (("work", "far"), "2-1", {}, "UP-944"),
        (("work", "sys-usb"), "2%s", {}, "'2%%s' names no"),
        (("sys-usb", "sys-usb"), "2%s", {}, "'2%%s' names no"),
    ],
)
def test_what_can_never_be_attached_is_not_assigned(
    world: World, ends: tuple[str, str], port: str, options: dict[str, str], sentence: str
) -> None:
    vms = world.app.domains
    frontend, backend = ends
    device = VirtualDevice(Port(vms[backend], port, "usb"), "*")
    devices = vms[frontend].devices["usb"]
    assignment = DeviceAssignment(device, vms[frontend], options=options, mode="auto-attach")
    with pytest.raises(QubesException, match=sentence):
        run(devices.assign(assignment))
    assert list(devices.get_assigned_devices()) == []


@pytest.mark.parametrize(
    ("port", "device_id", "sentence"),
    [
        ("2-1", "1.0", "'2-1:1.0' is .*UP-201"),
        ("2-1", "1050:0407", "UP-201"),
        ("*", "1.0", "UP-203"),
        ("*", "%s", "%%s"),
        ("2-1", "", "UP-201"),
        ("2-1", "1050:0407:0001:u030101", ""),
        ("2-1", "1050:0407:a:b:u030101", ""),
        ("*", "0000:0000::?******", "UP-945"),
        ("2-1", "0000:0000::?******", ""),
    ],
)
def test_what_is_no_identity_is_not_assigned(
    world: World, port: str, device_id: str, sentence: str
) -> None:
    """`qvm-usb` takes `2-1:1.0` for port 2-1 and a device that is called 1.0."""
    devices = world.work.devices["usb"]
    device = VirtualDevice(Port(world.usb, port, "usb"), device_id)
    assignment = DeviceAssignment(device, world.work, mode="auto-attach")
    if sentence:
        with pytest.raises(QubesException, match=sentence):
            run(devices.assign(assignment))
    else:
        run(devices.assign(assignment))
    assert bool(list(devices.get_assigned_devices())) is not bool(sentence)


def test_texts_are_no_repr(world: World) -> None:
    """And the client has no class of these names, whose KeyErrors would print as one."""
    for kind in (AlreadyAttached, NotAttached):
        assert str(kind("it's")) == "it's"
        assert issubclass(kind, KeyError)
        assert kind.__name__ not in ("DeviceAlreadyAttached", "DeviceNotAssigned")


def test_dom0_exposes_nothing(world: World) -> None:
    world.dom0.untrusted_qdb[f"{ROOT}/2-1/desc"] = b"1050:0407"
    assert list(world.dom0.devices["usb"]) == []
    assert not isinstance(world.dom0.devices["usb"]["2-1"], USBDevice)


def test_a_warning_of_an_attach_is_logged(world: World) -> None:
    for said, count in ((b"noise\n", 0), (b"50% \x1b[1m" + b"x" * 9999 + b" [UP", 0)):
        world.warning = said
        run(world.attach(world.work))
        run(world.detach(world.work))
        assert world.work.log.warning.call_count == count
    world.warning = b"50% of it\x1b[1m does not work [UP-123]\n"
    run(world.attach(world.work))
    (call,) = world.work.log.warning.call_args_list
    text = call.args[0] % call.args[1:]
    assert "attached to work, with a warning: 50% of it [1m does not work [UP-123]" in text
    assert text.isprintable()


CODES = b":080650:080662:080650:"


@pytest.mark.parametrize(
    ("desc", "interfaces", "denied", "features", "second"),
    [
        (b"46F4:0001 QEMU STICK 1:u2", CODES, "", (), "46f4:0001 080650 080662"),
        (b"46f4:0001", b":0806FF:", "u08****", (), "46f4:0001 0806ff"),
        (b"46f4:0001", b":%s" % b":".join(b"0000%02x" % n for n in range(99)), "", (), None),
        (b"46f4:0001", b"", "", (), "46f4:0001 *"),
        (b"46f4:0001", b":x;y:", "", (), "46f4:0001 *"),
        (b"46f4:0001", b"", "u08****", ("usb-any-interface",), ""),
        (b"46f4:0001", CODES, "", ("usb-any-interface",), ""),
        (b"0000:0000", CODES, "", (), ""),
        (b"\xff", CODES, "", (), ""),
        (b"46f4:0001", CODES, "", ("stubdom-qrexec",), ""),
    ],
)
def test_what_the_frontend_is_told(  # noqa: PLR0917
    world: World,
    desc: bytes,
    interfaces: bytes,
    denied: str,
    features: tuple[str, ...],
    second: str | None,
) -> None:
    if second is None:
        second = "46f4:0001 " + " ".join(f"0000{number:02x}" for number in range(32))
    world.usb.untrusted_qdb.update({f"{ROOT}/2-1/desc": desc, f"{ROOT}/2-1/interfaces": interfaces})
    world.work.virt_mode = "hvm"
    world.work.devices_denied = denied
    world.work.features.check_with_template = lambda feature, default: (
        feature in features or default
    )
    run(world.attach(world.work))
    assert world.second_lines == [second]


@pytest.mark.parametrize(
    ("desc", "interfaces"),
    [(b"46f4:0001", b""), (b"\xff", b":0e0100:"), (b"0000:0000", b":0e0100:")],
)
def test_nobody_says_what_it_is_and_some_are_denied(
    world: World, desc: bytes, interfaces: bytes
) -> None:
    """Nor would anybody compare what arrives with what does not say what it is."""
    world.usb.untrusted_qdb.update({f"{ROOT}/2-1/desc": desc, f"{ROOT}/2-1/interfaces": interfaces})
    world.work.devices_denied = "u08****"
    with pytest.raises(QubesException, match=r"nobody says what kind .*\[UP-943\]") as error:
        run(world.attach(world.work))
    assert "%" not in str(error.value)
    assert not world.calls


@pytest.mark.parametrize("shell", [["sh"], ["bash"], ["busybox", "sh"]])
def test_a_shell_reads_the_first_line_alone(shell: list[str]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"no {shell[0]} here")
    script = 'read backend device; printf "%s|%s" "$backend" "$device"'
    said = b"sys-usb 2-1\n46f4:0001 080650\n"
    done = subprocess.run([*shell, "-c", script], input=said, capture_output=True, check=True)
    assert done.stdout == b"sys-usb|2-1"


def test_no_device_is_required_for_a_start(world: World) -> None:
    with pytest.raises(QubesException, match="UP-946"):
        run(_none(world.assign(world.work, mode="required")))
    assert list(world.work.devices["usb"].get_assigned_devices()) == []


@pytest.mark.parametrize("mode", ["auto-attach", "ask-to-attach"])
def test_nor_is_it_later(world: World, mode: str) -> None:
    """The client names the assignment with an object of its own; how it was counts."""

    async def story() -> None:
        old = await world.assign(world.work, mode=mode)
        devices = world.work.devices["usb"]
        same = VirtualDevice(Port(world.usb, "2-1", "usb"), "*")
        with pytest.raises(QubesException, match="UP-946"):
            await devices.update_assignment(same, type(old.mode)("required"))
        assert [one.mode.value for one in devices.get_assigned_devices()] == [mode]
        other = {"auto-attach": "ask-to-attach", "ask-to-attach": "auto-attach"}[mode]
        await devices.update_assignment(same, type(old.mode)(other))
        assert [one.mode.value for one in devices.get_assigned_devices()] == [other]

    run(story())


async def _none(assigning: Awaitable[object]) -> None:
    await assigning


def test_what_is_stored_is_not_removed_when_its_mode_changes(world: World) -> None:
    """An impossible one of an older version; the client names it with an object of its own."""
    devices = world.work.devices["usb"]
    device = VirtualDevice(Port(world.usb, "2-1", "usb"), "*")
    world.work.events_enabled = False
    devices.load_assignment(
        DeviceAssignment(device, world.work, options={"x": "y"}, mode="auto-attach")
    )
    world.work.events_enabled = True
    same = VirtualDevice(Port(world.usb, "2-1", "usb"), "*")
    details: dict[str, Any] = {"pre_event": True, "device": same, "options": {"x": "y"}}
    with pytest.raises(QubesException, match="UP-902"):
        run(_none(world.work.fire_event_async("device-pre-assign:usb", **details)))
    assert len(list(devices.get_assigned_devices())) == 1
