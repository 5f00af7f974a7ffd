# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules that allow a frontend its one call: there while dom0's own call runs, and no longer.

The file is only ever replaced, by an empty one when nothing is allowed: the parser lists the
folder and then opens, and a file that is gone in between fails the call that is being decided.

`qrexec/policy/parser.py` of qubes-core-qrexec reads `*.policy` of this folder and of
`/etc/qubes/policy.d` sorted by name, skips hidden files, and refuses *every* call of the machine
if a name has another character than `a-z0-9_.-`, or a line is wrong.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from usb_proxy.dom0 import rules
from usb_proxy.dom0.qubesd import QubesException
from usb_proxy.errors import in_words, reason, sentence
from usb_proxy.idents import BusId, DomainName

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN_POLICY = Path("/run/qubes/policy.d")
"""RUNTIME_POLICY_PATH of qubes-core-qrexec: gone after a reboot."""

FILE_NAME = rules.FILE_NAME

_HEADER = "# Written by qubesd while USB devices are being attached. Changes are lost.\n"


class CallRules:
    """The one file, shared by all attaches that run at the same time."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE_NAME
        self._temporary = folder / f".{FILE_NAME}.new"
        self._rules: Counter[str] = Counter()

    @contextmanager
    def allowing(self, frontend: DomainName, backend: DomainName, port: BusId) -> Iterator[None]:
        """Let `frontend` call qubes.USB for one device as long as the block runs."""
        rule = f"qubes.USB +{port} {frontend} {backend} allow user=root\n"
        self._rules[rule] += 1
        try:
            self._write()
            yield
        finally:
            self._rules[rule] -= 1
            self._rules += Counter()  # drops what nobody needs any more
            try:
                self._write()
            except QubesException as error:
                self._empty(error)  # the other calls may fail, but nothing stays allowed
                raise

    def clear(self) -> None:
        """Take back what a qubesd that was killed left behind."""
        self._rules.clear()
        try:
            left = self._file.stat().st_size > 0
            self._temporary.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise QubesException(
                sentence("UP-916", path=self._file, reason=reason(error))
            ) from error
        if left:
            self._write()

    def _write(self) -> None:
        rules = "".join(sorted(self._rules))
        try:
            self._temporary.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(self._temporary, flags, 0o640), "w", encoding="ascii") as file:
                file.write(rules and _HEADER + rules)
            self._temporary.replace(self._file)
        except FileNotFoundError as error:
            raise QubesException(sentence("UP-941", path=self._file.parent)) from error
        except OSError as error:
            raise QubesException(
                sentence("UP-915", path=self._file, reason=reason(error))
            ) from error

    def _empty(self, before: QubesException) -> None:
        """Where no other file can be written: the one that is there has no rule any more."""
        try:
            os.truncate(self._file, 0)
        except FileNotFoundError:
            return
        except OSError as error:
            text = sentence("UP-916", path=self._file, reason=reason(error))
            raise QubesException(in_words([before, text])) from error
