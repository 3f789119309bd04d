# SPDX-License-Identifier: Apache-2.0
"""What the command line shows: progress, results, errors.

Results go to standard output, everything else to standard error. Colours and moving bars appear on
terminals only; elsewhere a long stage writes a plain line every ten seconds.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from weft import errors
from weft.errors import WeftError
from weft.lifecycle.planning import size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from _typeshed import DataclassInstance

    from weft.types import Progress as Report

SCHEMA = 1
EXIT_INTERNAL = 1
EXIT_CHECK_FAILED = 9
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143
EXIT_STATUS: list[tuple[type[WeftError], int, str]] = [
    (errors.InvalidArgumentError, 3, "invalid_argument"),
    (errors.WriterClosedError, 3, "writer_closed"),
    (errors.NotFoundError, 4, "not_found"),
    (errors.IndexExistsError, 5, "index_exists"),
    (errors.IndexLockedError, 5, "index_locked"),
    (errors.CorruptIndexError, 6, "corrupt"),
    (errors.IncompatibleIndexError, 6, "incompatible"),
    (errors.OutOfMemoryError, 7, "out_of_memory"),
    (errors.StorageError, 7, "io"),
    (errors.DeviceError, 7, "device"),
    (errors.MissingExtraError, 8, "missing_extra"),
]

EXIT_HELP = (
    "0 done, 1 a bug of weft, 2 wrong usage, 3 an argument or a source that cannot be, "
    "4 not found, 5 exists or is locked, 6 damaged or incompatible, 7 no memory, disk or device, "
    "8 an extra is missing, 9 a check said no, 130 interrupted, 141 nobody reads the output, "
    "143 terminated"
)

PLAIN_LINE_SECONDS = 10.0
PLAIN_WIDTH = 10_000


class Terminated(KeyboardInterrupt):
    """The system, or whoever manages it, asks us to end: done like an interruption by a key."""


def heed_termination() -> None:
    """Let SIGTERM end a command at a safe point."""

    def terminate(_number: int, _frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)


def count(value: float) -> str:
    """Write a count for people: 950, 12,300, 4.56 M."""
    return f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:.2f} M"


def duration(seconds: float) -> str:
    """Write a time for people: 8.4 s, 2 min 05 s, 3 h 12 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    )


def as_json(value: DataclassInstance) -> dict[str, Any]:
    """Give a dataclass as JSON values."""
    return dataclasses.asdict(value)


def pairs(rows: Iterable[tuple[str, str]], title: str | None = None) -> Table:
    """Lay out names and values in two columns."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def console(stream: TextIO) -> Console:
    """Give a console for a stream; lines are wrapped on terminals only."""
    return Console(file=stream, highlight=False, width=None if stream.isatty() else PLAIN_WIDTH)


def show(target: Console, renderable: object) -> None:
    """Print something; off a terminal without the spaces that fill up its lines."""
    if isinstance(renderable, str):  # never markup: it may hold what a user or a document wrote
        renderable = Text(renderable)
    if target.is_terminal:
        target.print(renderable)
        return
    with target.capture() as captured:
        target.print(renderable)
    lines = captured.get().removesuffix("\n").split("\n")
    target.file.write("".join(f"{line.rstrip()}\n" for line in lines))


class RateColumn(ProgressColumn):
    """Done, total and steps per second."""

    def render(self, task: Task) -> Text:
        """Write the column of one stage."""
        total = "" if task.total is None else f"/{count(task.total)}"
        seconds = task.finished_time or task.elapsed
        speed = task.completed / seconds if seconds else 0.0
        rate = f"  {count(speed)}/s" if speed >= 1 else ""
        return Text(f"{count(task.completed)}{total}{rate}")


class View:
    """The two output streams of one command, and what was asked of them.

    Parameters
    ----------
    as_json
        Print one JSON object instead of text.
    quiet
        No progress, notes or warnings; results and errors only.
    progress
        False leaves out progress, and keeps notes and warnings.
    """

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, progress: bool = True
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.show_progress = progress and not quiet
        self.out = console(sys.stdout)
        self.err = console(sys.stderr)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger = logging.getLogger("weft")
        logger.handlers = [handler]
        logger.setLevel(logging.ERROR if quiet else logging.INFO)

    def note(self, text: object = "") -> None:
        """Say what is being done, on standard error."""
        if not self.quiet:
            show(self.err, text)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Say what one waits for, on a terminal and only as long as one waits."""
        if self.show_progress and self.err.is_terminal:
            with self.err.status(text):
                yield
        else:
            yield

    def print(self, renderable: object = "") -> None:
        """Show a part of the result; with JSON nothing, since that is one object."""
        if not self.as_json:
            show(self.out, renderable)

    def result(self, document: dict[str, Any]) -> None:
        """Print the result as JSON, if that was asked for."""
        if self.as_json:
            self.out.file.write(
                json.dumps({"schema": SCHEMA, **document}, ensure_ascii=False) + "\n"
            )

    def error(self, code: str, message: str, hint: str | None = None) -> None:
        """Show one error: a line with its hint, or one JSON object."""
        if self.as_json:
            error = {"code": code, "message": message, "hint": hint}
            self.err.file.write(json.dumps({"schema": SCHEMA, "error": error}) + "\n")
        else:
            self.err.print(Text.assemble(("error: ", "bold red"), message))
            if hint:
                self.err.print(Text.assemble(("hint: ", "bold cyan"), hint))

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn whatever goes wrong inside into a message and an exit status."""
        try:
            yield
            sys.stdout.flush()
        except WeftError as error:
            status, code = status_of(error)
            if status == EXIT_INTERNAL:
                self.err.file.write(traceback.format_exc())
            self.error(code, str(error), getattr(error, "hint", None))
            raise typer.Exit(status) from error
        except KeyboardInterrupt as error:
            self.error("interrupted", "interrupted; the index is as it was at its last commit")
            terminated = isinstance(error, Terminated)
            raise typer.Exit(EXIT_TERMINATED if terminated else EXIT_INTERRUPTED) from error
        except BrokenPipeError as error:  # the reader of our output has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_BROKEN_PIPE) from error
        except MemoryError as error:
            self.error("out_of_memory", "out of memory", "give less to --max-ram or --threads")
            raise typer.Exit(7) from error
        except OSError as error:  # where a step of ours does not say more
            self.error("io", f"{error.filename}: {error.strerror or error}")
            raise typer.Exit(7) from error
        except (typer.Exit, typer.Abort, SystemExit):
            raise
        except Exception as error:
            self.err.file.write(traceback.format_exc())
            self.error(
                "internal", f"{type(error).__name__}: {error}", "this is a bug of weft: report it"
            )
            raise typer.Exit(EXIT_INTERNAL) from error

    @contextmanager
    def progress(self) -> Iterator[Report | None]:
        """Give a callable that takes (stage, done, total) and shows it, or None when silent."""
        if not self.show_progress:
            yield None
        elif self.err.is_terminal:
            columns = (
                TextColumn("{task.description:>9}"),
                BarColumn(bar_width=30),
                RateColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("[dim]{task.fields[memory]}"),
            )
            with Progress(*columns, console=self.err, speed_estimate_period=120.0) as bars:
                shown = _Bars(bars)
                yield shown
                shown.finish()
        else:
            lines = _Lines(self.err)
            yield lines
            lines.finish()


class _Bars:
    """Progress on a terminal: one bar a stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._current: str | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._current:
            if self._current is not None:
                self._settle(self._current)
            if stage in self._tasks:  # once more, for the next segment
                self._bars.reset(self._tasks[stage])
            else:
                self._tasks[stage] = self._bars.add_task(stage, total=total or None, memory="")
            self._current = stage
        self._bars.update(
            self._tasks[stage], completed=done, total=total or None, memory=anonymous_memory()
        )

    def finish(self) -> None:
        if self._current is not None:
            self._settle(self._current)

    def _settle(self, stage: str) -> None:
        task = self._bars.tasks[self._bars.task_ids.index(self._tasks[stage])]
        if not task.finished:
            self._bars.update(task.id, total=task.completed, completed=task.completed)


class _Lines:
    """Progress without a terminal: a line for each stage, and one every ten seconds."""

    def __init__(self, err: Console) -> None:
        self._err = err
        self._stage: str | None = None
        self._state = (0, 0)
        self._written: tuple[object, ...] = ()
        self._started = self._shown = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self.finish()
            self._stage, self._started, self._shown = stage, now, now
        self._state = (done, total)
        if now - self._shown >= PLAIN_LINE_SECONDS:
            self._shown = now
            self._write(now)

    def finish(self) -> None:
        if self._stage is not None and self._written != (self._stage, *self._state):
            self._write(time.monotonic())
        self._stage = None

    def _write(self, now: float) -> None:
        done, total = self._state
        self._written = (self._stage, done, total)
        seconds = max(now - self._started, 1e-9)
        parts = [f"{self._stage}: {count(done)}" + (f"/{count(total)}" if total else "")]
        parts.append(f"{count(done / seconds)}/s" if seconds > 0.1 and done > seconds else "")
        parts.append(duration(seconds))
        if total > done > 0:
            parts.append(f"about {duration(seconds / done * (total - done))} left")
        parts.append(anonymous_memory())
        self._err.print(", ".join(part for part in parts if part))


def anonymous_memory() -> str:
    """Memory of this process that is not a mapped file, where the system tells (Linux)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return size(int(line.split()[1]) * 1024)
    except OSError:
        pass
    return ""


def status_of(error: WeftError) -> tuple[int, str]:
    """Give the exit status and the code of an error."""
    for kind, status, code in EXIT_STATUS:
        if isinstance(error, kind):
            return status, code
    return EXIT_INTERNAL, "internal"
