# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that have booted, so that the next of their kind need not: memory, and what they wrote."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .image import cache_folder, run, scratch

KEPT_STATES = 8


class Saved:
    """A place in the cache for the state of such a machine on such an image."""

    def __init__(self, image: Path, hardware: list[str]) -> None:
        """`hardware` is QEMU's options, as far as they say what the guest sees."""
        self._image = image
        binary = os.stat(shutil.which(hardware[0]) or hardware[0])
        parts = (os.path.realpath(image), *hardware, str(binary.st_mtime_ns))
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        self._folder = cache_folder() / f"booted-{key}"

    def exists(self) -> bool:
        """Whether a guest can be restored; that one is kept then."""
        try:
            os.utime(self._folder)
        except FileNotFoundError:
            return False
        return True

    @property
    def memory(self) -> Path:
        """What QEMU wrote as a migration."""
        return self._folder / "memory"

    def drive(self, fresh: Path | None) -> str:
        """QEMU's option for the disk: a restored guest's, or a new one's that writes to `fresh`."""
        if fresh:
            # The image is open in this process alone, so its name is of no use to a later one.
            options = ("-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "image")
            run("qemu-img", "create", *options, fresh, str(os.stat(self._image).st_size))
        file = fresh or f"{self._folder}/disk,snapshot=on"
        backing = f"backing.driver=raw,backing.file.filename={self._image}"
        return f"id=root,if=none,format=qcow2,file={file},{backing}"

    def save(self, fresh: Path, stop_and_write: Callable[[Path], None]) -> None:
        """Keep a guest if none was kept before; it is stopped, and its memory written to a file."""
        cache = cache_folder()
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.exists():
                return
            with scratch(cache) as work:
                stop_and_write(work / "memory")
                shutil.copy(fresh, work / "disk")
                work.rename(self._folder)
            states = sorted(cache.glob("booted-*"), key=lambda path: -path.stat().st_mtime)
            for old in states[KEPT_STATES:]:
                shutil.rmtree(old)
