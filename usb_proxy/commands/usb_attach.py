# SPDX-License-Identifier: GPL-2.0-or-later
"""qubes.USBAttach: attach a device of another qube to this one; `BACKEND DEVICE` on stdin."""

from __future__ import annotations

import posix as os
import select

from usb_proxy import qrexec, runstate, vhci
from usb_proxy.errors import (
    ExitCode,
    PeerError,
    RequestError,
    StoppedError,
    UsbProxyError,
    printable,
)
from usb_proxy.host import signal
from usb_proxy.idents import DomainName, Target, parse_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from usb_proxy.host import Host

IMPORTER = "/usr/lib/qubes/usb-import"
ATTACH_SECONDS = 110.0
"""Longer than the importer takes if all its deadlines pass one after the other, those for cleaning
up included, so that it is the one to tell why."""

SAY_SECONDS = 10.0
END_SECONDS = 1.0
"""For a call that is of no use any more; the processes behind it clean up by themselves."""

OUTPUT_LIMIT = 4096

KILLED = 128
"""What the importer's shell adds to the signal that killed the importer."""

ENDED, LEFT = b"[UP-615]", b"[UP-309]"
"""What importer and backend say of a device that left the bus when it was set up."""

SIGNALS = 64
"""The highest number of a signal, asm-generic/signal.h (_NSIG); 255 is qrexec-client-vm's own."""

ATTACHED = bytes([ExitCode.OK])
"""The importer's report that the device can be used; else its exit code comes with a sentence."""


def main(_arguments: Sequence[str], host: Host) -> int:
    """Return once the device can be used in this qube."""
    untrusted_fields = qrexec.read_request(host)
    if len(untrusted_fields) != 2:
        raise RequestError("UP-217")
    backend = DomainName.parse(untrusted_fields[0])
    target = parse_target(untrusted_fields[1])
    qrexec.require_root(host)
    host.load_module(vhci.MODULE, vhci.DRIVER)
    deadline = host.now() + ATTACH_SECONDS
    failure, has_left = _call(host, backend, target, deadline)
    if has_left:
        # The backend waits for it the next time.
        failure, _ = _call(host, backend, target, deadline)
    if failure is not None:
        raise failure
    return 0


def _call(
    host: Host, backend: DomainName, target: Target, deadline: float
) -> tuple[UsbProxyError | None, bool]:
    """Call `qubes.USB` in the backend, until the importer says that the device is there.

    Else gives why not, and whether the device left while it was set up here.
    """
    report, importers_report = os.pipe()
    errors, calls_errors = os.pipe()
    os.set_inheritable(importers_report, True)
    service = f"{qrexec.SERVICE}+{target}"
    record = runstate.record_path(runstate.attachment_name(backend, target))
    importer = [IMPORTER, record, str(importers_report)]
    try:
        # It goes on when we end, and a call to us ends only when nobody has our stderr any more.
        pid = host.start(
            [qrexec.CLIENT, backend, service, *importer], calls_errors, new_session=True
        )
    finally:
        os.close(importers_report)
        os.close(calls_errors)
    try:
        untrusted_report, untrusted_errors = _listen(host, report, errors, deadline)
    except BaseException:
        os.killpg(pid, signal.SIGTERM)
        host.reap(pid, host.now() + END_SECONDS)
        raise
    finally:
        # An importer that still works on it notices, and takes the device out again.
        os.close(report)
        os.close(errors)
    if untrusted_report == ATTACHED:
        return None, False
    code = host.reap(pid, host.now() + END_SECONDS)
    failure = _failure(backend, target, code, untrusted_report, untrusted_errors)
    return failure, untrusted_report.endswith(ENDED) and LEFT in untrusted_errors


def _listen(host: Host, report: int, errors: int, deadline: float) -> tuple[bytes, bytes]:
    """What the importer reports and what the call says on stderr, bounded in size and time."""
    untrusted = {report: b"", errors: b""}
    waits = dict.fromkeys(untrusted, select.POLLIN)
    while waits and untrusted[report] != ATTACHED:
        ready = host.wait(waits, deadline)
        if not ready:
            break
        for fd in ready:
            untrusted_part = os.read(fd, OUTPUT_LIMIT)
            untrusted[fd] = (untrusted[fd] + untrusted_part)[:OUTPUT_LIMIT]
            if not untrusted_part:
                del waits[fd]
        if untrusted[report] or report not in waits:
            # It has failed. What the backend has to say may come until it has cleaned up.
            deadline = min(deadline, host.now() + SAY_SECONDS)
    return untrusted[report], untrusted[errors]


def _failure(
    backend: DomainName,
    target: Target,
    code: int | None,
    untrusted_report: bytes,
    untrusted_errors: bytes,
) -> UsbProxyError:
    """Why the attach did not succeed, from all that was said."""
    service = f"{qrexec.SERVICE}+{target}"
    if code == qrexec.REFUSED and not untrusted_report:
        return PeerError("UP-607", service=service, backend=backend)
    said = printable(untrusted_errors)
    if code is not None and KILLED < code <= KILLED + SIGNALS and not untrusted_report:
        # What its shell says of that, in words of its own, is not the backend's.
        return StoppedError("UP-803", device=target, backend=backend, signal=code - KILLED)
    if not untrusted_report and not said:
        if code is None:
            return PeerError("UP-618", device=target, backend=backend, service=service)
        return PeerError("UP-609", device=target, backend=backend, service=service, code=code)
    code = untrusted_report[0] if untrusted_report else ExitCode.PEER
    if code > ExitCode.STOPPED:
        code = ExitCode.PEER
    # The backend tells better than the importer why it let go.
    why = [] if said and code == ExitCode.PEER else [printable(untrusted_report[1:])]
    if said:
        why.append(f"{backend} says: {said}")
    failure = PeerError("UP-608", device=target, backend=backend, quoted="; ".join(why))
    failure.code = code or ExitCode.PEER
    return failure
