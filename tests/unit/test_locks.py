# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks between processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from usb_proxy.errors import SystemLackError
from usb_proxy.locks import LOCKS, Lock, await_end, lock_names

from .processes import PATIENCE, Child, hold, leave, wait_for

if TYPE_CHECKING:
    from .fake_kernel import FakeKernel

NAME = "export-2-1"


def test_a_held_lock_is_not_given_to_another(kernel: FakeKernel) -> None:
    lock = Lock(kernel, NAME)
    with hold(kernel, NAME):
        assert not lock.acquire(0)
        assert not lock.acquire(0.05)
        assert kernel.locks() == [f"{NAME}.lock"]
        other = Lock(kernel, "export-2-2")
        assert other.acquire(0)
        with other:
            assert lock_names(kernel) == [NAME, "export-2-2"]
            assert lock_names(kernel, "import-") == []


def test_what_is_no_lock_of_a_device_is_skipped(kernel: FakeKernel) -> None:
    kernel.make_folder(LOCKS)
    for name in ("export-2-1:1.0", "export-", "import-2-1", "bus-usb1", "other"):
        kernel.make_file(f"{LOCKS}/{name}.lock", "1")
    assert lock_names(kernel) == []


def test_a_released_lock_leaves_nothing(kernel: FakeKernel) -> None:
    lock = Lock(kernel, NAME)
    for _ in range(2):
        assert lock.acquire(0)
        with lock:
            assert not lock.leftover
            lock.note("something")
            lock.note("")
        assert kernel.locks() == []


def test_what_could_not_be_cleaned_up_stays_noted(kernel: FakeKernel) -> None:
    lock = Lock(kernel, NAME)
    assert lock.acquire(0)
    with lock:
        lock.note("something")
    assert lock.acquire(0)
    assert lock.leftover == "something"


def test_a_lock_is_waited_for_until_its_holder_ends(kernel: FakeKernel) -> None:
    with hold(kernel, NAME, release=True) as holder:
        os.kill(holder.pid, signal.SIGTERM)
        lock = Lock(kernel, NAME)
        assert lock.acquire(10)
        with lock:
            assert not lock.leftover


def test_what_a_killed_holder_noted_is_found(kernel: FakeKernel) -> None:
    with hold(kernel, NAME) as holder:
        holder.kill()
    leave(kernel, NAME, "a much longer note")
    leave(kernel, NAME, "port 1")
    lock = Lock(kernel, NAME)
    assert lock.acquire(0)
    with lock:
        assert lock.leftover == "port 1"
        lock.note("")
    assert lock.acquire(0)
    with lock:
        assert not lock.leftover


def test_the_holder_is_stopped_and_nobody_else(kernel: FakeKernel) -> None:
    lock = Lock(kernel, NAME)
    assert lock.stop_holder() is None
    leave(kernel, NAME, "the dead")
    assert lock.stop_holder() is None
    with hold(kernel, "export-2-2") as other, hold(kernel, NAME) as holder:
        handle = lock.stop_holder()
        assert handle is not None
        assert await_end(kernel, handle, kernel.now() + 10)
        assert holder.code() == -signal.SIGTERM
        assert not other.ended()


def test_a_holder_that_ends_before_it_is_told_is_no_failure(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold(kernel, NAME) as child:
        find = Lock._holder

        def find_and_kill(lock: Lock) -> int | None:
            handle = find(lock)
            child.kill()
            return handle

        monkeypatch.setattr(Lock, "_holder", find_and_kill)
        handle = Lock(kernel, NAME).stop_holder()
    assert handle is not None
    assert await_end(kernel, handle, kernel.now() + PATIENCE)


def test_a_holder_that_stands_still_is_stopped_too(kernel: FakeKernel) -> None:
    with hold(kernel, NAME, release=True) as holder:
        os.kill(holder.pid, signal.SIGSTOP)
        handle = Lock(kernel, NAME).stop_holder()
        assert handle is not None
        assert await_end(kernel, handle, kernel.now() + 10)
        assert holder.code() == 0


def test_the_wait_for_a_holder_has_an_end(kernel: FakeKernel) -> None:
    with hold(kernel, NAME) as holder:
        assert not await_end(kernel, os.pidfd_open(holder.pid), kernel.now() + 0.02)


def test_a_file_that_replaced_the_locked_one_counts(kernel: FakeKernel) -> None:
    """Who locked a file that has no name any more has nothing."""
    path = kernel.tree / LOCKS[1:] / f"{NAME}.lock"
    with hold(kernel, NAME):
        path.unlink()
        lock = Lock(kernel, NAME)
        assert lock.acquire(0)
        with lock, Child(lambda: int(Lock(kernel, NAME).acquire(0))) as third:
            assert third.code() == 0


@pytest.mark.parametrize("plant", ["link", "folder", "file in the way"])
def test_a_place_that_cannot_be_used_is_told_of(kernel: FakeKernel, plant: str) -> None:
    folder = kernel.tree / LOCKS[1:]
    if plant == "file in the way":
        folder.touch()
    elif plant == "folder":
        (folder / f"{NAME}.lock").mkdir(parents=True)
    else:
        folder.mkdir()
        (folder / f"{NAME}.lock").symlink_to(kernel.tree / "elsewhere")
    with pytest.raises(SystemLackError, match="needs root and a writable /run"):
        Lock(kernel, NAME).acquire(0)
    assert not (kernel.tree / "elsewhere").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_without_rights_there_is_no_lock(kernel: FakeKernel) -> None:
    (kernel.tree / "run").chmod(0o555)
    try:
        with pytest.raises(SystemLackError, match="Permission denied"):
            Lock(kernel, NAME).acquire(0)
    finally:
        (kernel.tree / "run").chmod(0o755)


def test_many_holders_never_overlap(kernel: FakeKernel) -> None:
    """Each makes a file that may not be there, and removes it before it lets go."""
    mark = kernel.tree / "held"

    def body() -> None:
        lock = Lock(kernel, NAME)
        for turn in range(50):
            assert lock.acquire(10)
            with lock:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
                lock.note(f"turn {turn}")
                lock.note("")
                mark.unlink()

    children = [Child(body) for _ in range(4)]
    try:
        assert [child.code() for child in children] == [0] * 4
    finally:
        for child in children:
            child.kill()
    assert kernel.locks() == []


def test_a_lock_that_is_released_meanwhile_has_no_holder(kernel: FakeKernel) -> None:
    """Whoever is to be stopped may just have ended by itself."""

    def body() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            lock = Lock(kernel, NAME)
            assert lock.acquire(0)
            with lock:
                pass

    with Child(body):
        deadline = kernel.now() + 1.0
        while kernel.now() < deadline:
            handle = Lock(kernel, NAME).stop_holder()
            if handle is not None:
                os.close(handle)


@pytest.mark.parametrize("is_released", [True, False])
def test_a_lock_that_passes_is_had_as_soon_as_its_living_holder_lets_go(
    kernel: FakeKernel, is_released: bool
) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    ready, tell = os.pipe()
    go_on, release = os.pipe()

    def body() -> None:
        with Lock(kernel, NAME) as lock:
            assert lock.acquire(0)
            os.write(tell, b"x")
            os.read(go_on, 1)
        signal.pause()

    with Child(body) as holder:
        os.read(ready, 1)
        lock = Lock(kernel, NAME)
        if is_released:
            threading.Timer(0.2, os.write, (release, b"x")).start()
        began = time.monotonic()
        got = lock.acquire(PATIENCE if is_released else 0.3, passes=True)
        assert (got, holder.ended()) == (is_released, False)
        if got:
            lock.__exit__()
        assert time.monotonic() - began < PATIENCE / 2
        assert signal.getsignal(signal.SIGALRM) == handler
    for fd in (ready, tell, go_on, release):
        os.close(fd)


def test_a_deadline_of_such_a_lock_is_no_stop_signal(kernel: FakeKernel) -> None:
    """It is an alarm, and `wait` knows a stop signal by what wakes it."""

    def body() -> None:
        kernel.guard_signals()
        assert not Lock(kernel, NAME).acquire(0.1, passes=True)
        assert kernel.wait({}, kernel.now() + 0.05) == {}

    with hold(kernel, NAME), Child(body) as child:
        assert child.code() == 0


def test_waiting_is_bounded_for_a_lock_that_changes_hands(kernel: FakeKernel) -> None:
    """Its waiters get it one after the other."""
    with hold(kernel, NAME, release=True) as first:
        got = kernel.tree / "got"

        def body() -> None:
            lock = Lock(kernel, NAME)
            assert lock.acquire(10)
            with lock, got.open("a") as file:
                file.write("x")

        waiters = [Child(body) for _ in range(3)]
        os.kill(first.pid, signal.SIGTERM)
        assert [child.code() for child in waiters] == [0] * 3
        wait_for(lambda: got.read_text() == "xxx", "all of them")
