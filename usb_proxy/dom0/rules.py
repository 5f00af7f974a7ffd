# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether dom0's policy lets an attach call qubes.USB: qrexec's own parser says so.

It reads both folders as qrexec does for each call, with the rule of this attach in its place
(qrexec/policy/parser.py of qubes-core-qrexec, which qubes-core-dom0 depends on).
"""

from __future__ import annotations

import linecache
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from usb_proxy.dom0.asking import Finding

FILE_NAME = "32-usb-proxy-attach.policy"
"""The rule of an attach: after the user's 30-user.policy, before 35-compat.policy and this
project's denying defaults."""

FOLDERS = (Path("/run/qubes/policy.d"), Path("/etc/qubes/policy.d"))
"""The first shadows files of the same name in the second."""

SERVICE = "qubes.USB"


def examine(
    source: str, backend: str, port: str, folders: tuple[Path, ...] = FOLDERS
) -> Iterator[Finding]:
    """What becomes of the call of an attach; `source` is the qube, or its stub domain."""
    cannot_tell = "cannot tell whether dom0's policy allows the call:"
    try:
        from qrexec import utils  # type: ignore[import-not-found]  # noqa: PLC0415 (dom0 has it)
        from qrexec.policy import parser  # type: ignore[import-not-found]  # noqa: PLC0415
    except ImportError:
        yield Finding("dom0", "warning", f"{cannot_tell} qrexec's parser is not here")
        return
    try:
        known = utils.get_system_info()
    except Exception as error:
        yield Finding("dom0", "warning", f"{cannot_tell} {_reason(error)}", "sudo qvm-usb-doctor")
        return
    try:
        policy = _policy(parser, f"{SERVICE} +{port} {source} {backend} allow user=root\n", folders)
    except Exception as error:  # Whatever it is, qrexec refuses the call because of it.
        if isinstance(error.__cause__, PermissionError):
            text, repair = f"{cannot_tell} {_reason(error)}", "sudo qvm-usb-doctor"
            yield Finding("dom0", "warning", text, repair)
        else:
            text = f"dom0's policy cannot be used, so every call is refused: {_reason(error)}"
            yield Finding("dom0", "error", text)
        return
    request = parser.Request(SERVICE, f"+{port}", source, backend, system_info=known)
    matching = (rule for rule in policy.rules if rule.is_match(request))
    yield _decision(next(matching, None), request, backend)


def _policy(parser: Any, rule: str, folders: tuple[Path, ...]) -> Any:
    """The policy with the rule of an attach, whatever attaches run now."""
    with tempfile.TemporaryDirectory() as first:
        (Path(first) / FILE_NAME).write_text(rule)
        return parser.FilePolicy(policy_path=[Path(first), *folders])


def _decision(rule: Any, request: Any, backend: str) -> Finding:
    """What the first rule that matches makes of the call."""
    if rule is None or rule.filepath.name == FILE_NAME:
        return Finding("dom0", "ok", f"no rule of dom0's policy denies {SERVICE}")
    line = " ".join(linecache.getline(str(rule.filepath), rule.lineno).split())
    shown = f"{rule.filepath}:{rule.lineno}: {line}"
    repair = f"sudoedit {rule.filepath}"
    try:
        resolution = rule.action.evaluate(request)
    except Exception:
        return Finding("dom0", "error", f"a rule denies the call: {shown}", repair)
    target = getattr(resolution, "target", backend)  # the user chooses it, where a rule asks
    if request.system_info["domains"].get(target, {}).get("name") != backend:
        return Finding("dom0", "error", f"a rule sends the call to another qube: {shown}", repair)
    return Finding("dom0", "ok", f"a rule of yours decides: {shown}")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
