# SPDX-License-Identifier: GPL-2.0-or-later
"""What `qvm-usb` prints: the imitation of it in the tests, and the real one where it is given."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.docs.documents import steps_of_block
from tests.dom0 import client, imitation
from tests.dom0.world import World

PROGRAMS = [
    imitation.run,
    pytest.param(
        client.run,
        marks=pytest.mark.skipif(
            not client.SOURCES, reason="not run: CORE_ADMIN_CLIENT= was not given"
        ),
    ),
]
STORY = """\
dom0$ qvm-usb list
BACKEND:DEVID  DESCRIPTION  USED BY
home:5-1       ...
sys-usb:1-4    ...
sys-usb:2-1    ...
dom0$ qvm-usb attach work sys-usb:2-1
Error: qubes-usb-proxy is not installed in work; ... [UP-911]
dom0$ qvm-usb attach work sys-usb:2-1
dom0$ qvm-usb list
BACKEND:DEVID  DESCRIPTION  USED BY
home:5-1       ...
sys-usb:1-4    ...
sys-usb:2-1    ...          work (attached)
dom0$ qvm-usb attach home sys-usb:2-1
Error: USB device sys-usb:2-1 is attached to work already; detach it first [UP-908]
dom0$ qvm-usb attach work sys-usb:9-9
qvm-usb: error: backend vm sys-usb doesn't expose usb device '9-9'
dom0$ qvm-usb detach work sys-usb:9-9
Error: sys-usb:9-9:0000:0000::?****** not found.
dom0$ qvm-usb attach dom0 sys-usb:1-4
Error: USB devices cannot be attached to dom0; name another qube [UP-905]
dom0$ qvm-usb attach sys-usb sys-usb:1-4
Error: USB device sys-usb:1-4 is in sys-usb already; name another qube [UP-906]
dom0$ qvm-usb detach work sys-usb:2-1
dom0$ qvm-usb assign work sys-usb:9-9
Error: backend vm sys-usb doesn't expose usb device '9-9'
dom0$ qvm-usb assign dom0 sys-usb:1-4
Error: USB devices cannot be attached to dom0; name another qube [UP-905]
dom0$ qvm-usb assign --port work sys-usb:2%s
Error: '2%s' names no USB device; ... [UP-203]
dom0$ qvm-usb assign work sys-usb:2-1
Assigned. To attach you can now restart domain or run:
    qvm-usb attach work sys-usb:2-1
dom0$ qvm-usb assign --port work sys-usb:9-9
dom0$ qvm-usb unassign --port work sys-usb:9-9
dom0$ qvm-usb unassign work sys-usb:2-1
dom0$ qvm-usb assign --port work sys-usb:1-4
Assigned. To attach you can now restart domain or run:
    qvm-usb attach work sys-usb:1-4
dom0$ qvm-usb attach work sys-usb:1-4
dom0$ qvm-usb unassign --port work sys-usb:1-4
Unassigned. To detach you can now restart domain or run:
    qvm-usb detach work sys-usb:1-4
dom0$ qvm-usb detach work sys-usb:1-4
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_it_prints(tmp_path: Path, program: client.Program) -> None:
    world = World(tmp_path)
    world.seconds = 0

    async def story() -> list[str]:
        world.plug("5-1", vm=world.home)
        world.plug("1-4")
        world.plug()
        world.failures.append((127, b""))
        steps = [*steps_of_block(("story", 1), "console", STORY.splitlines())]
        return [
            step.difference(await program(world, step.text.removeprefix("qvm-usb ").split()))
            for step in steps
        ]

    assert not "\n".join(filter(None, asyncio.run(story())))
