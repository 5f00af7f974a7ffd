# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian 12 in one of the two qubes, and Debian 13 in the other: another kernel and Python."""

import hashlib
from pathlib import Path

import pytest

from tests.lab.demo import Story, carry, make_stick
from tests.lab.guests import Guest
from tests.lab.lab import Lab
from tests.lab.qubes import PACKAGES, Qubes, guest_hash


@pytest.mark.parametrize(("backend", "frontend"), [("bookworm", "trixie"), ("trixie", "bookworm")])
def test_there_and_back(backend: str, frontend: str, tmp_path: Path) -> None:
    """The demonstration's journey, and another with the announcement that dom0 makes."""
    image = make_stick(tmp_path)
    with Lab(PACKAGES, backend, print, frontend_suite=frontend) as lab:
        qubes = Qubes(lab)
        assert kernel(qubes.backend) != kernel(qubes.frontend)
        carry(lab, Story(), image)
        qubes.backend.run("umount /mnt")

        assert qubes.attach("2-1").code == 0
        assert guest_hash(qubes.frontend, "/dev/sda") == digest(image)
        assert qubes.take_back("2-1").code == 0
        assert qubes.await_clean() == []
        assert qubes.driver("2-1") == "usb"


def kernel(guest: Guest) -> str:
    """Its version and release, as `6.1`."""
    return ".".join(guest.run("uname -r").text.split(".")[:2])


def digest(image: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(image.read_bytes()).hexdigest()
