# SPDX-License-Identifier: GPL-2.0-or-later
"""Qubes: a qube of this machine is where extensions hook their handlers."""

from typing import Any

from qubes import events


class BaseVM(events.Emitter):
    qid: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BaseVM) and self.qid == other.qid

    def __hash__(self) -> int:
        return self.qid


class LocalVM(BaseVM):
    name: Any
    _qdb_watch_paths: set[str]

    def watch_qdb_path(self, path: str) -> None:
        self._qdb_watch_paths.add(path)
