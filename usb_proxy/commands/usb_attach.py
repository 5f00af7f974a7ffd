# SPDX-License-Identifier: GPL-2.0-or-later
"""qubes.USBAttach: attach a device of another qube to this one; `BACKEND DEVICE` on stdin.

A second line, if there is one, says what the device has to be: `idents.Announcement`.
"""

from __future__ import annotations

from usb_proxy import qrexec, suspend
from usb_proxy.errors import (
    ExitCode,
    PeerError,
    RequestError,
    StoppedError,
    SystemLackError,
    UsbProxyError,
    printable,
)
from usb_proxy.frontend import records
from usb_proxy.host import POLLIN
from usb_proxy.idents import Announcement, Attachment, DomainName, Target, parse_target
from usb_proxy.kernel import VHCI_DRIVER, VHCI_MODULE

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

JUDGED = (b"[UP-640]", b"[UP-641]")
"""What the importer says of a device that is not what was announced: a liar has no say in that."""

UNANSWERED = b"[UP-614]"
"""What the importer says where no service ran; qrexec's exit code may tell why."""

ID = b"[UP-"
EXPORTER = b"usb-export: "
"""How a line begins that is taken for the backend's word: no program of this qube writes one to the
stderr of a call. What else comes there is of either qube: qrexec's, libxenvchan's, a shell's."""

NO_ROOM = b"gntshr: error: ioctl failed: No space left on device"
"""libxenvchan's, of this qube: no more pages may be shared (drivers/xen/gntalloc.c, limit)."""

CONNECTING_FAILED = 1
"""qrexec-client-vm's exit code then (agent/qrexec-agent-data.c); no importer's."""

SIGNALS = 64
"""The highest number of a signal, asm-generic/signal.h (_NSIG); 255 is qrexec-client-vm's own."""

ATTACHED = bytes([ExitCode.OK])
"""The importer's report that the device can be used; else its exit code comes with a sentence."""

WARNED = bytes([ExitCode.WARNING])
"""It can be used, but the sentence that follows says what should be looked at."""


def main(_arguments: Sequence[str], host: Host) -> int:
    """Return once the device can be used in this qube."""
    untrusted_request, untrusted_announcement = qrexec.read_lines(host, more=True)
    untrusted_fields = untrusted_request.split()
    if len(untrusted_fields) != 2:
        raise RequestError("UP-217")
    backend = DomainName(untrusted_fields[0])
    target = parse_target(untrusted_fields[1])
    announced = [Announcement(untrusted_announcement)] if untrusted_announcement else []
    qrexec.require_root(host, "qubes.USBAttach")
    # Before the backend takes the device; the importer asks again, with its lock in hand.
    suspend.check(host, suspend.now())
    host.load_module(VHCI_MODULE, VHCI_DRIVER)
    deadline = host.now() + ATTACH_SECONDS
    failure, has_left = _call(host, backend, target, announced, deadline)
    if has_left:
        # The backend waits for it the next time.
        failure, _ = _call(host, backend, target, announced, deadline)
    if failure is not None:
        raise failure
    return 0


def _call(
    host: Host, backend: DomainName, target: Target, announced: list[Announcement], deadline: float
) -> tuple[UsbProxyError | None, bool]:
    """Call `qubes.USB` in the backend, until the importer says that the device is there.

    Else gives why not, and whether the device left while it was set up here.
    """
    report, importers_report = host.pipe()
    errors, calls_errors = host.pipe()
    host.inherit(importers_report, True)
    record = records.path_of(Attachment(f"{backend}-{target}"))
    command = [qrexec.CLIENT, backend, f"{qrexec.SERVICE}+{target}"]
    command += [IMPORTER, record, str(importers_report), *announced]
    try:
        # It goes on when we end, and a call to us ends only when nobody has our stderr any more.
        pid = host.start(command, calls_errors, new_session=True)
    finally:
        host.close_all(importers_report, calls_errors)
    try:
        untrusted_report, untrusted_errors = _listen(host, report, errors, deadline)
    except BaseException:
        host.end_session(pid)
        host.reap(pid, host.now() + END_SECONDS)
        raise
    finally:
        # An importer that still works on it notices, and takes the device out again.
        host.close_all(report, errors)
    if _is_attached(untrusted_report):
        host.warn("usb-attach", untrusted_report[1:])
        return None, False
    is_own = bool(untrusted_report) and untrusted_report[0] != ExitCode.PEER
    code = host.reap(pid, host.now() + (0 if is_own else END_SECONDS))
    is_judged = any(id in untrusted_report for id in JUDGED)
    untrusted_words = b"" if is_judged else untrusted_errors
    failure = _failure(backend, target, code, untrusted_report, untrusted_words)
    return failure, untrusted_report.endswith(ENDED) and LEFT in untrusted_errors


def _is_attached(untrusted_report: bytes) -> bool:
    """Whether the importer reports that the device can be used."""
    return untrusted_report == ATTACHED or untrusted_report.startswith(WARNED)


def _listen(host: Host, report: int, errors: int, deadline: float) -> tuple[bytes, bytes]:
    """What the importer reports and what the call says on stderr, bounded in size and time."""
    untrusted = {report: b"", errors: b""}
    waits = dict.fromkeys(untrusted, POLLIN)
    while waits and not _is_attached(untrusted[report]):
        ready = host.wait(waits, deadline)
        if not ready:
            break
        for fd in ready:
            untrusted_part = host.read_open(fd, OUTPUT_LIMIT)
            untrusted[fd] = (untrusted[fd] + untrusted_part)[:OUTPUT_LIMIT]
            if not untrusted_part:
                del waits[fd]
        if untrusted[report] and untrusted[report][0] != ExitCode.PEER:
            break  # It is this qube's own reason; the backend may still be waiting for its lock.
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
    """Why the attach did not succeed, from all that was said; what has an id counts first."""
    service = f"{qrexec.SERVICE}+{target}"
    untrusted_theirs, untrusted_others = _sort(untrusted_errors)
    if code == CONNECTING_FAILED and NO_ROOM in untrusted_others and not untrusted_theirs:
        return SystemLackError("UP-753")
    if not untrusted_report or UNANSWERED in untrusted_report:
        failure = _by_code(code, service, backend)
        if failure is not None:
            return failure
    if code is not None and KILLED < code <= KILLED + SIGNALS and not untrusted_report:
        # What its shell says of that, in words of its own, adds nothing.
        return StoppedError("UP-803", device=target, backend=backend, signal=code - KILLED)
    said, own = printable(untrusted_theirs), printable(untrusted_report[1:])
    on_the_way = printable(untrusted_others)
    if not said and not own and not on_the_way:
        if code is None:
            return PeerError("UP-618", device=target, backend=backend, service=service)
        return PeerError("UP-609", device=target, backend=backend, service=service, code=code)
    code = untrusted_report[0] if untrusted_report else ExitCode.PEER
    if not ExitCode.OK < code <= ExitCode.STOPPED:
        code = ExitCode.PEER
    # The backend tells better than the importer why it let go.
    why = [own] if own and not (said and code == ExitCode.PEER) else []
    if said:
        why.append(f"{backend} says: {said}")
    elif on_the_way and code == ExitCode.PEER:
        why.append(f"said on the way: {on_the_way}")
    failure = PeerError("UP-608", device=target, backend=backend, quoted="; ".join(why))
    failure.code = code
    return failure


def _by_code(code: int | None, service: str, backend: DomainName) -> PeerError | None:
    """What qrexec's own exit codes say of a call in which no service has answered."""
    if code == qrexec.REFUSED:
        return PeerError("UP-607", service=service, backend=backend)
    if code == qrexec.NOT_FOUND:
        return PeerError("UP-622", service=service, backend=backend)
    if code == qrexec.PROBLEM:
        return PeerError("UP-623", service=service, backend=backend)
    return None


def _sort(untrusted_errors: bytes) -> tuple[bytes, bytes]:
    """What the exporter wrote to the call's stderr, with an id; and what anybody else did."""
    untrusted_lines: tuple[list[bytes], list[bytes]] = [], []
    for untrusted_line in untrusted_errors.splitlines():
        is_theirs = untrusted_line.startswith(EXPORTER) and ID in untrusted_line
        untrusted_lines[not is_theirs].append(untrusted_line)
    untrusted_theirs, untrusted_others = map(b" ".join, untrusted_lines)
    return untrusted_theirs, untrusted_others
