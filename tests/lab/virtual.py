# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest whose clock counts instructions, for figures that do not depend on the host.

A nanosecond is an instruction: a computer of 1 GIPS without a cache. While the guest waits its
clock jumps to its next timer, so what takes the host a while, such as a read from its disk, may
seem to take no time or a minute: nothing may be read from the disk in what is measured, and no
deadline may run while the guest waits for the host.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from .guests import BACKEND, Guest
from .image import Progress, image
from .router import Router

VIRTUAL_TIME = [
    "-accel",
    "tcg,thread=single,tb-size=512",
    "-cpu",
    "max",
    "-icount",
    "shift=0,sleep=off",
]
START_SECONDS = 300


@contextlib.contextmanager
def virtual_guest(
    suite: str, progress: Progress, changed: Callable[[str, str], None]
) -> Iterator[Guest]:
    """A guest with USB controllers, without our package; `changed` as for a `Router`."""
    boot = image(None, suite, progress)
    with contextlib.ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="lab-"))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        router = Router(lambda *_: None, changed)
        cleanup.callback(router.close)
        guest = Guest(BACKEND, boot, folder, router, 1, speed=VIRTUAL_TIME)
        cleanup.callback(guest.kill)
        guest.start()
        guest.wait_ready(START_SECONDS)
        yield guest
