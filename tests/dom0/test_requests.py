# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach and detach as the user asks for them, and what the user reads."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.dom0.clock import run
from tests.dom0.world import ROOT, World
from usb_proxy import qrexec
from usb_proxy.commands import usb_attach
from usb_proxy.dom0 import services
from usb_proxy.dom0.qubesd import (
    DeviceAlreadyAttached,
    DeviceNotAssigned,
    QubesException,
    QubesValueError,
    QubesVMNotRunningError,
    UnrecognizedDevice,
)


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
    assert not world.rules.exists()


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
        assert [type(result) for result in results] == [type(None), DeviceAlreadyAttached]
        results = await asyncio.gather(
            world.detach(world.work), world.detach(world.work), return_exceptions=True
        )
        assert [type(result) for result in results] == [type(None), DeviceNotAssigned]
        started = asyncio.get_running_loop().time()
        await asyncio.gather(world.attach(world.work), world.attach(world.home, "1-1.4"))
        assert asyncio.get_running_loop().time() - started < 1.5

    run(story())
    told = world.news()
    assert told["attach work sys-usb:2-1"] == 2
    assert told["detach work sys-usb:2-1"] == told["attach home sys-usb:1-1.4"] == 1
    assert not world.rules.exists()


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
    assert not world.rules.exists()
    run(world.attach(world.work))


def test_a_service_that_does_not_answer(world: World) -> None:
    world.seconds = 9999
    with pytest.raises(QubesException, match="gave no answer for 125 seconds"):
        run(world.attach(world.work))
    assert not world.rules.exists()


def test_a_cancelled_request(world: World) -> None:
    async def story() -> None:
        task = asyncio.ensure_future(world.ext.attachments.attach(world.work, world.device()))
        await asyncio.sleep(0.5)
        assert "work" in world.rules.read_text()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not world.rules.exists()
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
        with pytest.raises(QubesException, match=r"sys-usb: hangs \[UP-913\]$"):
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
    assert not world.rules.exists()
    world.rules.mkdir()
    world.load()
    world.dom0.log.error.assert_called_once()
