# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether dom0's policy lets an attach call qubes.USB: as far as the files can be read as text.

The rule that `qvm-usb attach` writes counts only where none before it does
(qrexec/policy/parser.py of qubes-core-qrexec: files by name, the first rule that matches).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from usb_proxy.dom0.asking import Finding

FILE_NAME = "32-usb-proxy-attach.policy"
"""The rule of an attach: after the user's 30-user.policy, before 35-compat.policy and this
project's denying defaults."""

FOLDERS = (Path("/run/qubes/policy.d"), Path("/etc/qubes/policy.d"))
"""The first shadows files of the same name in the second."""

SERVICE = "qubes.USB"
ANY = ("*", "@anyvm")


def examine(
    frontend: str, backend: str, port: str, folders: tuple[Path, ...] = FOLDERS
) -> Iterator[Finding]:
    """What the first rule says that comes before the one of an attach, if there is one."""
    try:
        place, rule = _first(frontend, backend, port, folders)
    except OSError as error:
        text = f"the policy cannot be read: {error.strerror} ({error.filename})"
        yield Finding("dom0", "warning", text, "sudo qvm-usb-doctor")
        return
    if rule is None:
        yield Finding("dom0", "ok", f"no rule of dom0's policy denies {SERVICE}")
    elif rule[4].startswith("deny"):
        text = f"a rule denies the call: {place}: {' '.join(rule)}"
        yield Finding("dom0", "error", text, f"sudoedit {place.rpartition(':')[0]}")
    else:
        yield Finding("dom0", "ok", f"a rule of yours decides: {place}: {' '.join(rule)}")


def _first(
    frontend: str, backend: str, port: str, folders: tuple[Path, ...]
) -> tuple[str, list[str] | None]:
    """The first rule that counts before that of an attach, and where it stands."""
    files: dict[str, Path] = {}
    for folder in reversed(folders):
        files |= {path.name: path for path in folder.glob("[!.]*.policy")}
    for name in sorted(files):
        if name >= FILE_NAME:
            break
        for number, line in enumerate(files[name].read_text(errors="replace").splitlines(), 1):
            rule = line.split("#")[0].split()
            if len(rule) >= 5 and _matches(rule, frontend, backend, port):
                return f"{files[name]}:{number}", rule
    return "", None


def _matches(rule: list[str], frontend: str, backend: str, port: str) -> bool:
    service, argument, source, target = rule[:4]
    return (
        service in (SERVICE, "*")
        and argument in ("*", f"+{port}")
        and source in (*ANY, frontend)
        and target in (*ANY, backend)
    )
