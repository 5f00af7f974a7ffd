# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a backend's QubesDB. A qube that does not answer exposes nothing, and hurts nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usb_proxy.dom0 import untrusted
from usb_proxy.errors import sentence

if TYPE_CHECKING:
    from usb_proxy.dom0.qubesd import Qube
    from usb_proxy.idents import BusId, DomainName

_REASONS = {reason.encode(): reason for reason in ("detached", "unplugged", "died")}

_silent: set[str] = set()
"""The qubes of which it was told that they do not answer."""

_over: dict[tuple[str, str], tuple[str, bytes | None]] = {}
"""By backend and port: the connection that is over, though its key is there: frontend and pid."""


def reset() -> None:
    """qubesd starts: nothing is known."""
    _silent.clear()
    _over.clear()


def ports(backend: Qube) -> list[BusId]:
    """The ports of a qube with a device in them; none if it does not run."""
    try:
        if backend.klass == "AdminVM":  # qrexec cannot lend from there
            return []
        if backend.app.vmm.offline_mode or not backend.is_running():
            return []
        if backend.untrusted_qdb is None:
            silent(backend, "its QubesDB does not answer")
            return []
    except Exception as error:
        silent(backend, error)
        return []
    return listed(backend)


def listed(backend: Qube) -> list[BusId]:
    """The same; libvirt is asked only for a qube without an open database (qubes/vm/qubesvm.py)."""
    try:
        if backend.klass == "AdminVM":  # qrexec cannot lend from there
            return []
        database = None if backend.app.vmm.offline_mode else backend.untrusted_qdb
        if database is None:
            return []
        untrusted_paths = database.list(untrusted.ROOT + "/")
    except Exception as error:  # QubesDB's, of a qube that is being killed
        silent(backend, error)
        return []
    _silent.discard(backend.name)
    return untrusted.bus_ids(untrusted_paths or ())


def read(backend: Qube, port: BusId | str, entry: str) -> bytes | None:
    """One untrusted entry of a device, None if there is none."""
    try:
        if backend.klass == "AdminVM":
            return None
        database = backend.untrusted_qdb
        path = f"{untrusted.ROOT}/{port.replace('.', '_')}/{entry}"
        untrusted_value = None if database is None else database.read(path)
    except Exception as error:
        silent(backend, error)
        return None
    return untrusted_value if isinstance(untrusted_value, bytes) else None


def frontend(backend: Qube, port: BusId) -> DomainName | None:
    """The qube that a device is said to be connected to; there may be no such qube."""
    name = untrusted.frontend(read(backend, port, "connected-to"))
    if over := _over.get((backend.name, str(port))):
        if over == (name, read(backend, port, "x-pid")):
            return None
        del _over[backend.name, str(port)]
    return name


def reason(backend: Qube, port: BusId | str) -> str | None:
    """Why the last connection of a device ended, if its backend says so (backend/qubesdb.py)."""
    untrusted_value = read(backend, port, "x-ended")
    return _REASONS.get(untrusted_value) if untrusted_value is not None else None


def end(backend: Qube, port: str, name: str) -> None:
    """A connection with the qube `name` is over, whatever its key says until it goes."""
    if untrusted.frontend(read(backend, port, "connected-to")) == name:
        _over[backend.name, port] = name, read(backend, port, "x-pid")


def begin(backend: Qube, port: str) -> None:
    """A new connection has begun."""
    _over.pop((backend.name, port), None)


def forget(name: str) -> None:
    """A backend ended, and its QubesDB with it."""
    _silent.discard(name)
    for key in [key for key in _over if key[0] == name]:
        del _over[key]


def silent(backend: Qube, why: object) -> None:
    """A qube does not answer: this is told once, until it does."""
    if backend.name not in _silent:
        _silent.add(backend.name)
        backend.log.warning("%s", sentence("UP-922", qube=backend.name, reason=why))
