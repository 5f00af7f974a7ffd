# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration: a USB stick goes from one virtual machine to another, and comes back.

Each step checks what it shows, and the program ends with 0 only if all were seen to happen.
"""

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.lab.errors import LabError
from tests.lab.guests import Guest
from tests.lab.lab import Lab

LETTER = "Dear reader,\nthis was written before the journey.\n" * 100
ANSWER = "Written in work, and carried back by the stick."
STEPS = 8


def say(text: str) -> None:
    print(text, flush=True)


class Story:
    """Numbers the steps, and times them."""

    def __init__(self) -> None:
        self._number = 0

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[list[str]]:
        """One step; what it appends to the list it gets is shown with it."""
        self._number += 1
        start = time.monotonic()
        seen: list[str] = []
        try:
            yield seen
        except BaseException:
            say(f"[{self._number}/{STEPS}] {text}: FAILED")
            raise
        taken = time.monotonic() - start
        detail = f" -> {'; '.join(seen)}" if seen else ""
        say(f"[{self._number}/{STEPS}] {text}{detail} ({taken:.1f} s)")


def expect(fact: bool, text: str) -> None:
    """Raise LabError unless something was seen to be so."""
    if not fact:
        raise LabError(text)


def make_stick(folder: Path) -> Path:
    """An image of 16 MiB with a file system and the letter in it."""
    content = folder / "content"
    content.mkdir()
    (content / "letter.txt").write_text(LETTER)
    image = folder / "stick.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(
        ["/sbin/mke2fs", "-q", "-t", "ext2", "-L", "STICK", "-d", content, image], check=True
    )
    return image


def call(lab: Lab, guest: Guest, service: str, request: str) -> None:
    """Call a service as dom0 does; LabError with its sentence if it fails."""
    done = lab.call(guest, service, f"{request}\n".encode())
    expect(done.code == 0, f"{service}: {done.stderr.decode()}")


def mount(guest: Guest) -> None:
    """Mount the stick at /mnt, once it is there."""
    guest.wait_for("test -b /dev/disk/by-label/STICK")
    guest.run("mount -t ext2 /dev/disk/by-label/STICK /mnt")


def carry(lab: Lab, story: Story, image: Path) -> None:
    """The journey of one device."""
    sys_usb, work = lab.backend, lab.frontend
    with story.step("a USB stick is plugged into sys-usb") as seen:
        sys_usb.plug_storage("stick", image)
        sys_usb.wait_for("test -b /dev/disk/by-label/STICK && test -e /run/lab-qubesdb/*desc")
        listed = lab.qubesdb_list(sys_usb, "/qubes-usb-devices/")
        ((key, untrusted_description),) = [i for i in listed.items() if i[0].endswith("/desc")]
        device = key.split("/")[2].replace("_", ".")
        # udev escapes a space so, in ID_MODEL_ENC.
        shown = untrusted_description.decode().replace(r"\x20", " ")
        seen.append(f"dom0 sees sys-usb:{device}, {shown}")
    with story.step(f"dom0 attaches sys-usb:{device} to work") as seen:
        with lab.allowed("qubes.USB", device, work, sys_usb):
            call(lab, work, "qubes.USBAttach", f"sys-usb {device}")
        sys_usb.wait_for("test -e /run/lab-qubesdb/*connected-to")
        owner = lab.qubesdb_list(sys_usb, "/qubes-usb-devices/").get(
            key.replace("/desc", "/connected-to")
        )
        expect(owner == b"work", f"QubesDB says it is connected to {owner!r}")
        seen.append(work.run("lsusb | grep -v 'root hub'").text)
    with story.step("work reads the letter from the stick") as seen:
        mount(work)
        digest = hashlib.sha256(LETTER.encode()).hexdigest()
        found = work.run("sha256sum < /mnt/letter.txt").text.split()[0]
        expect(found == digest, "the letter has changed on its way")
        seen.append(f"SHA-256 {found[:16]}... is right")
    with story.step("work writes an answer to it"):
        work.write("/mnt/answer.txt", ANSWER)
        work.run("umount /mnt")
    with story.step("dom0 detaches it"):
        call(lab, work, "qubes.USBDetach", f"sys-usb {device}")
        work.run("! lsusb | grep -v 'root hub'")
    with story.step("the stick is back in sys-usb, with the answer") as seen:
        mount(sys_usb)
        found = sys_usb.read("/mnt/answer.txt").decode()
        expect(found == ANSWER, f"the answer has changed on its way: {found!r}")
        expect("connected-to" not in str(lab.qubesdb_list(sys_usb)), "it is still published")
        seen.append(found)


def main() -> int:
    """Give 0 if every step was seen to happen, else 1."""
    story = Story()
    try:
        with tempfile.TemporaryDirectory(prefix="demo-") as folder, contextlib.ExitStack() as end:
            with story.step("a stick with a letter on it is made"):
                image = make_stick(Path(folder))
            with story.step("sys-usb and work start, each with a kernel of its own"):
                lab = end.enter_context(Lab(progress=lambda line: say(f"      {line}")))
            carry(lab, story, image)
    except (LabError, subprocess.CalledProcessError) as error:
        say(str(error))
        return 1
    say("The device went from one virtual machine to the other and back.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
