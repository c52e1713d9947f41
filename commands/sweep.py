"""`litcam sweep`: a file of W&B's sweep format, run on this machine without an account."""

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from litcam.commands.cli import yaml_text
from litcam.commands.cli.config_files import find_configs
from litcam.commands.cli.errors import OptionError
from litcam.commands.cli.options import OptionParser
from litcam.commands.running import training
from litcam.files import replacing, write_whole
from litcam.report.filling import fill_in
from litcam.report.sweep import SweepPage, write_sweep_report
from litcam.sweeps import Arm, Results, Sweep, plan, read_sweep, run_arms
from litcam.sweeps.arms import LOG, make_arms
from litcam.sweeps.running import DONE, sigterm_as_interrupt

# What a program says that was stopped by Ctrl-C.
STOPPED = 130

PAGE = """\
usage: litcam sweep FILE [OPTIONS] [OPTIONS OF litcam fit]

  Runs `litcam fit` once for every combination of values in FILE, which is a sweep of W&B's format
  (method grid or random, early_terminate hyperband) with `command: [litcam, fit, …]`. The same file
  works with `wandb sweep` and `wandb agent`; here no account is needed. At the end: a table of
  means over the seeds with 95 % intervals, a plot, what each parameter changes, and one page.

  Run it again to go on: arms that are done stay, one that was interrupted goes on in mid-epoch, one
  that failed is tried again, new values in FILE are added.

  litcam sweep sweep/mask_ratio.yaml --data.root DIR --trainer.max_epochs 20

Options
  --jobs N    arms at a time; GPUs are shared out among them. Default: 1
  --out DIR   where everything goes. Default: runs/sweeps/NAME_OF_FILE
  --table     run nothing: make table, plot and page of what is there
  --page P    put table and effects into the Markdown page P as well, between its lines
              `<!-- NAME_OF_FILE -->` and `<!-- /NAME_OF_FILE -->`
  --metric M  compare this metric instead of the file's, such as val/loss
  --epochs E …  show it after these epochs as well, counted from 0
  Others are `litcam fit`'s, for every arm; they win over the values in FILE."""


def sweep(args: Sequence[str]) -> None:
    """Runs a sweep; `args` are the words after `litcam sweep`.

    Raises:
        ValueError: the file is no sweep, an arm's options make no sense, another sweep runs in the
            folder, or an arm failed.
    """
    if not {"-h", "--help"}.isdisjoint(args):
        print(PAGE)
        return
    parser = OptionParser("sweep")
    parser.add_argument("file")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--metric")
    parser.add_argument("--epochs", type=int, nargs="+", default=[])
    options, extra = parser.parse_known_args(list(args))
    if options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    if options.page and not options.page.is_file():
        raise ValueError(f"--page {options.page} does not exist; name a Markdown page")
    file = Path(find_configs(["--config", options.file])[1])
    described = _read(file)
    folder = options.out or Path("runs") / "sweeps" / file.stem
    arms = _plan(described, folder, find_configs(extra), file)
    try:
        with sigterm_as_interrupt():
            if not options.table:
                _run(arms, described, folder, options.jobs)
            elif not any(arm.read()["state"] == "finished" for arm in arms):
                raise ValueError(f"folder {folder} holds no finished run of {file}; run it first")
            results = Results(described, arms, options.metric, options.epochs)
            print(_tell(results, folder, file))
            if options.page and results.measured:  # else what the page holds is the better
                fill_in(options.page, file.stem, f"{results.text()}\n{results.cost()}")
    except KeyboardInterrupt:
        left = sum(arm.read()["state"] not in DONE for arm in arms)
        print(f"Stopped with {left} of {len(arms)} runs to do. To go on: the same command")
        raise SystemExit(STOPPED) from None
    if failed := [arm for arm in arms if arm.read()["state"] == "failed"]:
        first, more = failed[0], f" and {len(failed) - 1} more" if failed[1:] else ""
        raise ValueError(
            f"{first.name}{more} failed: {first.read()['reason']} (see {first.folder / LOG}); the "
            "same command tries again"
        )


def _read(file: Path) -> Sweep:
    try:
        return read_sweep(yaml_text.load_file(file))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"sweep {file}: {error}") from None


def _plan(described: Sweep, folder: Path, extra: Sequence[str], file: Path) -> list[Arm]:
    """The arms, each value of them held against what `litcam fit` takes."""
    fixed = {word.partition("=")[0].removeprefix("--") for word in extra}
    if both := [name for name in described.varied if name in fixed]:
        raise ValueError(f"--{both[0]} is varied by {file}, and cannot be given as well")
    try:
        values = plan(described)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"sweep {file}: {error}") from None
    arms = make_arms(values, described.varied, folder, before=described.words, after=extra)
    seen: set[tuple[str, str]] = set()
    for arm in arms:
        own = {(name, repr(value)) for name, value in arm.values.items()}
        if own <= seen:
            continue
        seen |= own
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                training.run(["fit", *find_configs(arm.words), "--print_config"])
            except SystemExit as end:
                if end.code:
                    raise
            except OptionError as error:
                raise ValueError(f"sweep {file}, {arm.name}: {error}") from None
    return arms


def _run(arms: Sequence[Arm], described: Sweep, folder: Path, jobs: int) -> None:
    """Runs what is not done, under a bar, alone in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "sweep.lock", timeout=0):
            done = sum(arm.read()["state"] in DONE for arm in arms)
            with _bar(len(arms), done) as (watch, told):
                run_arms(arms, described, jobs=jobs, watch=watch(described.metric), told=told)
    except Timeout:
        raise ValueError(
            f"another sweep runs in {folder}; wait for it, or give --out DIR"
        ) from None


@contextlib.contextmanager
def _bar(total: int, done: int) -> Iterator[tuple[Any, Any]]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    console = Console()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("runs", total=total, completed=done)

        def told(arm: Arm, state: str) -> None:
            known = arm.read()
            reason = f": {known['reason']}" if known["reason"] else ""
            line = f"{arm.name}: {state} after {known['seconds']:.0f} s{reason}"
            console.print(line, markup=False)  # what a run said may hold brackets
            progress.advance(task, state in DONE)

        def watch(metric: str) -> Any:
            def look(running: Sequence[Arm]) -> None:
                names = (f"{arm.name}{_latest(arm, metric)}" for arm in running)
                progress.update(task, description="; ".join(names) or "runs")

            return look

        yield watch, told


def _latest(arm: Arm, metric: str) -> str:
    measured = arm.history(metric)
    return f" ({metric} {measured[-1]:.4g} after {len(measured)})" if measured else ""


def _tell(results: Results, folder: Path, file: Path) -> str:
    """Writes table, plot and page, and returns what to say of them."""
    # Imported here, with matplotlib: half a second.
    from litcam.sweeps.figure import draw

    table, rows, effects = results.table(), results.rows(), results.said()
    states = [arm.read()["state"] for arm in results.arms]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    if not results.measured:
        return f"No run has a value of {results.metric} ({counted}); see {folder}"
    plot = draw(results)
    write_whole(folder / "runs.csv", rows)
    write_whole(folder / "table.md", results.text())
    with replacing(folder / "plot.png") as partial:
        partial.write_bytes(plot)
    parsed = list(csv.reader(io.StringIO(rows)))
    names = ["run", *(arm.name for arm in results.arms)]
    page = SweepPage(
        title=folder.name,
        about=f"{file.name}: {counted}; {results.metric} is the last one measured",
        metric=results.metric,
        plot=plot,
        table=table,
        effects=effects,
        runs=[[name, *row] for name, row in zip(names, parsed, strict=True)],
        described=file.read_text(encoding="utf-8"),
    )
    report = write_sweep_report(folder, page)
    Console().print(Markdown(table))
    lines = [f"{results.metric}, {counted}", *effects]
    lines += [f"Everything is in {folder}", f"The whole sweep on one page: {report}"]
    return "\n".join(lines)
