"""Lightning's `CSVLogger` whose table no stop, no full disk and no other run takes away."""

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as loggers
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from litcam.files import append_text, read_rows, write_whole

log = logging.getLogger("lightning.pytorch.callbacks.litcam")


class SafeCSVLogger(loggers.CSVLogger):
    """Logs to `metrics.csv` in a folder that it takes for itself.

    Lightning (2.6.6) deletes the table of a folder that it finds, writes it anew in place where a
    metric comes to it, and gives two runs that start at once the same folder. Here the table that
    is found stays until the first rows of a new one replace it, or `go_on` keeps it; on a full disk
    rows wait in memory; and a folder belongs to the run that made it. With a remote folder it is
    Lightning's.

    Args:
        save_dir: where `NAME/version_N/metrics.csv` is written.
        name: of the experiment.
        version: of the run; by default the next one.
        **kwargs: as in Lightning's `CSVLogger`.
    """

    def __init__(
        self,
        save_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir, name, version, **kwargs)
        self._warned = False

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The table; on rank zero."""
        if self._experiment is None and _is_local_file_protocol(self.save_dir):
            self._experiment = _Table(self.log_dir)
        return super().experiment

    def go_on(self, step: int) -> None:
        """Keeps the rows of an earlier run in this folder up to a step; on rank zero."""
        if isinstance(self.experiment, _Table):
            with self._patient():
                self.experiment.go_on(step)

    @rank_zero_only
    def save(self) -> None:
        """Writes what was logged; where that fails it is tried again the next time."""
        with self._patient():
            super().save()

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Writes what was logged up to a checkpoint, from which a run may have to go on."""
        self.save()

    @contextmanager
    def _patient(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._warned:
                log.warning(f"SafeCSVLogger keeps its rows in memory: {error}")
            self._warned = True

    def _get_next_version(self) -> int:
        version = int(super()._get_next_version())
        while _is_local_file_protocol(self.save_dir) and not getattr(rank_zero_only, "rank", 0):
            try:
                Path(self.root_dir, f"version_{version}").mkdir(parents=True)
            except FileExistsError:
                version += 1
            else:
                break
        return version


class _Table(ExperimentWriter):
    """Rows that are on the disk, and those that are not yet."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._file = Path(self.metrics_file_path)
        self._earlier = read_rows(self._file)
        self._header: list[str] = []  # of what this run has written
        self._again: int | None = None

    def go_on(self, step: int) -> None:
        """Keeps earlier rows before a step; those of the last one may come again."""
        earlier: list[Any] = [row for row in self._earlier if _step(row) < step]
        self.metrics[:0] = earlier
        self.save()
        self._again = step - 1

    def save(self) -> None:
        """Adds the new rows to the file, or writes it anew where they have new columns.

        A row that comes again, as of a validation made up for, takes the place of the earlier one.
        """
        if not self.metrics:
            return
        self._record_new_keys()
        again = {frozenset(row) for row in self.metrics if row["step"] == self._again}
        if self.metrics_keys == self._header and not again:
            append_text(self._file, _as_text(self._header, self.metrics))
        else:
            rows = read_rows(self._file) if self._header else []
            kept = [r for r in rows if _step(r) != self._again or frozenset(r) not in again]
            self._write([*kept, *self.metrics])
        self.metrics = []

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        header = [*self.metrics_keys]
        write_whole(self._file, _as_text(header, [dict(zip(header, header, strict=True)), *rows]))
        self._header = header

    def _check_log_dir_exists(self) -> None:
        """What is there stays."""


def _step(row: Mapping[str, Any]) -> float:
    try:
        return int(row["step"])
    except (KeyError, ValueError):
        return float("inf")


def _as_text(header: list[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, header).writerows(rows)
    return text.getvalue()
