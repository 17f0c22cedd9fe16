"""TensorBoard's events, written at once by the thread that has them: there a full disk is an error like others."""

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from highrank.files import explained, write_all

__all__ = ["EventFile"]


class EventFile:
    """A new file of events in ``folder``. Events of ``first_step`` and after it in older files are void.

    Raises UserError if the file cannot be written; TensorBoard reads it up to an event that was cut short.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        self._path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.0"
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        try:
            self._write(Event(step=first_step, file_version="brain.Event:2"))
            self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        except BaseException:
            self.close()
            raise

    def add(self, figures: Mapping[str, float], step: int) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        framed = io.BytesIO()
        RecordWriter(framed).write(event.SerializeToString())
        with explained(self._path):
            write_all(self._file, framed.getvalue())
