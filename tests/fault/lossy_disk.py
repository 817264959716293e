"""A disk that loses its power: what was written is noted beside the files, and images of any moment made.

Until a file is synced, nobody knows what of it is on the disk: nothing, everything, or some sectors in any
order. `Disk.image` is what a machine would find when the power is back. Other files than those that SQLite
writes while the disk is watched are not its concern.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import apsw

__all__ = ["Disk", "Event"]

SECTOR = 512
_names = count(1)


class Event(NamedTuple):
    """What happened to a file; or what somebody was answered (then the `file` is empty)."""

    file: str
    kind: str
    at: int = 0
    what: Any = b""


class Disk:
    """Notes what SQLite does to the files of one folder.

    Attributes
    ----------
    events : list of Event
        In their order, since `watched` was entered.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start: dict[str, bytes] = {}
        self.events: list[Event] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Return a block in which new connections are noted. What is there before is durable."""
        self._start = {path.name: path.read_bytes() for path in self._folder.iterdir() if path.is_file()}
        vfs = _Watching(self)
        try:
            yield
        finally:
            vfs.unregister()

    def answered(self, what: Any) -> None:
        """Note that somebody was answered just now."""
        self.events.append(Event("", "answered", 0, what))

    def image(self, cut: int, folder: Path, chance: random.Random | None, *, lies: bool = False) -> None:
        """Write the files as they are on the disk if the power goes after so many events.

        Parameters
        ----------
        cut : int
            How many events have happened.
        folder : Path
            Where to write them.
        chance : random.Random or None
            Decides what of the unsynced is there; ``None``: nothing of it.
        lies : bool, default False
            Whether the disk says that it has synced, and has not.
        """
        durable = {name: bytearray(content) for name, content in self._start.items()}
        pending: dict[str, list[Event]] = {}
        for event in self.events[:cut]:
            if event.kind != "sync":
                pending.setdefault(event.file, []).append(event)
            elif not lies:
                for each in pending.pop(event.file, ()):
                    _apply(each, durable.setdefault(event.file, bytearray()))
        for name, events in pending.items():
            for event in events if chance is not None and name else ():
                for part in _torn(event, chance):
                    _apply(part, durable.setdefault(name, bytearray()))
        for name, content in durable.items():
            (folder / name).write_bytes(content)


def _apply(event: Event, content: bytearray) -> None:
    if event.kind == "write":
        content.extend(bytes(max(0, event.at - len(content))))
        content[event.at : event.at + len(event.what)] = event.what
    else:
        del content[event.at :]


def _torn(event: Event, chance: random.Random) -> Iterator[Event]:
    """Yield what of an event is on the disk: nothing, all of it, or some sectors of what was written."""
    fate = chance.random()
    if fate < 0.3:
        return
    if event.kind != "write" or fate < 0.7:
        yield event
        return
    for start in range(0, len(event.what), SECTOR):
        if chance.random() < 0.5:
            yield event._replace(at=event.at + start, what=event.what[start : start + SECTOR])


class _Watching(apsw.VFS):
    """The file system of this machine, for every connection that names no other, and its disk takes notes."""

    def __init__(self, disk: Disk) -> None:
        self._real = apsw.vfs_names()[0]
        self._disk = disk
        super().__init__(f"watching {next(_names)}", self._real, makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _WatchedFile(self._real, name, flags, self._disk)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        file = os.path.basename(filename)
        self._disk.events.append(Event(file, "delete"))
        if syncdir:
            self._disk.events.append(Event(file, "sync"))


class _WatchedFile(apsw.VFSFile):
    def __init__(self, real: str, name: Any, flags: list[int], disk: Disk) -> None:
        super().__init__(real, name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._note = disk.events.append
        self._file = os.path.basename(path or f"temporary {id(self)}")

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._note(Event(self._file, "write", offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:
        super().xTruncate(newsize)
        self._note(Event(self._file, "truncate", newsize))

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._note(Event(self._file, "sync"))
