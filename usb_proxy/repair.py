# SPDX-License-Identifier: GPL-2.0-or-later
"""Cleaning up after the dead, on either side."""

from __future__ import annotations

from usb_proxy import endings, locks
from usb_proxy.backend import exports, qubesdb
from usb_proxy.errors import UsbProxyError, history, lack
from usb_proxy.frontend import gates, imports
from usb_proxy.idents import Attachment, BusId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host


def repair(host: Host) -> None:
    """Clean up after every exporter and importer of this qube that has died.

    Whatever fails keeps nothing else from being cleaned up; at the end all failures are raised,
    each as the context of the next.
    """
    failures: list[Exception] = []
    for name in locks.lock_names(host):
        lock = locks.Lock(host, name)
        try:
            if not lock.acquire(0):
                continue
            with lock:
                subject = locks.subject(name)
                # Without a note it had done nothing yet.
                if lock.leftover and isinstance(subject, BusId):
                    exports.end(host, subject, lock, qubesdb.DIED)
                elif lock.leftover and isinstance(subject, Attachment):
                    imports.remove(host, subject, lock)
        except Exception as error:
            told = [each for each in history(error) if isinstance(each, UsbProxyError)]
            if not told and (failure := lack(error)):
                told = [failure]
            entry, seconds = endings.entry(host, lock)
            for each in told:
                entry.failed_after(each, seconds)
            failures += told or [error]
    try:
        failures += gates.repair(host)
    except Exception as error:
        failures.append(error)
    _raise_all(failures)


def _raise_all(failures: list[Exception]) -> None:
    if failures:
        try:
            _raise_all(failures[:-1])
        finally:
            raise failures[-1]
