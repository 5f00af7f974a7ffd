# SPDX-License-Identifier: GPL-2.0-or-later
"""Records in /run/qubes, for other programs: which port an attachment has.

The group `qubes` may write there: a record is a hint, and one that cannot be changed is a warning
for the journal.
"""

from __future__ import annotations

from usb_proxy.errors import RequestError, SystemLackError, reason
from usb_proxy.idents import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usb_proxy.host import Host

FOLDER = "/run/qubes"
_PREFIX = "usb-import-"
_SUFFIX = ".state"


def path_of(attachment: Attachment) -> str:
    """The file that says which port an attachment has."""
    return f"{FOLDER}/{_PREFIX}{attachment}{_SUFFIX}"


def parse(untrusted_path: str) -> Attachment:
    """The attachment that a record's path belongs to; RequestError for what is none."""
    folder, _, name = untrusted_path.rpartition("/")
    if folder != FOLDER or not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
        raise RequestError("UP-221", path=f"{FOLDER}/{_PREFIX}BACKEND-DEVICE{_SUFFIX}")
    return Attachment(name.removeprefix(_PREFIX).removesuffix(_SUFFIX))


def write(host: Host, attachment: Attachment, port: int) -> None:
    """Write the record of an attachment, whole or not at all: the port's number in its line.

    A link or file that was planted in its place is replaced, not followed.
    """
    path = path_of(attachment)
    try:
        host.remove(_fresh(attachment))  # Planted, or of a dead process.
        host.replace_file(path, _fresh(attachment), f"{port}\n")
    except OSError as error:
        _warn(host, attachment, SystemLackError("UP-717", path=path, reason=reason(error)))


def read(host: Host, attachment: Attachment) -> int | None:
    """The port in a record; None if there is none, or nothing that makes sense.

    It counts for attachments of a program that knows no locks, and for no other.
    """
    try:
        untrusted_port = host.read(path_of(attachment)).partition("\n")[0]
    except OSError:
        return None
    is_number = untrusted_port.isascii() and untrusted_port.isdigit() and len(untrusted_port) < 6
    return int(untrusted_port) if is_number else None


def remove(host: Host, attachment: Attachment) -> None:
    """Remove a record, if there is one, and one that was not written to its end."""
    path = path_of(attachment)
    try:
        host.remove(path)
        host.remove(_fresh(attachment))
    except OSError as error:
        _warn(host, attachment, SystemLackError("UP-718", path=path, reason=reason(error)))


def _fresh(attachment: Attachment) -> str:
    """Where a record is until it is whole."""
    return f"{FOLDER}/.{_PREFIX}{attachment}"


def _warn(host: Host, attachment: Attachment, error: SystemLackError) -> None:
    from usb_proxy import journal  # noqa: PLC0415 (usb-attach, in haste, wants a name alone)

    journal.Entry(host, attachment.device, attachment.backend, is_import=True).warned(error)
