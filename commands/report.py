"""`litcam report`: a run on one page, for the browser."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from litcam.commands.cli.options import OptionParser
from litcam.report.panel import write_panel
from litcam.report.writing import write_report

PAGE = """\
usage: litcam report [RUN] [OPTIONS]

  Writes report.html into the folder of a run: heatmaps and reconstructions with a slider over
  epochs, curves, figures of `litcam explain`, configuration and versions. One file that opens
  without a server or a network. No model is run: there is nothing to choose a device for.
  `litcam fit` writes it at the end of every run.

RUN is the folder of a run, such as runs/demo/version_0 or lightning_logs/version_0, or one above
it; then the newest run in it is taken. Default: runs

Options
  --explained FOLDER …  what `litcam explain --out FOLDER` wrote, to be shown too
  --panel EPOCH …       reconstructions after these epochs in one figure as well, panel.png
  --out FILE            default: report.html in the run's folder"""

SIGNS = ("metrics.csv", "gradcam/images.jsonl", "reconstructions/images.jsonl")


def report(args: Sequence[str]) -> None:
    """Writes the report of a run; `args` are the words after `litcam report`.

    Raises:
        ValueError: there is no such folder, nothing of a run in it, or an option makes no sense;
            or the report cannot be written.
    """
    if not {"-h", "--help"}.isdisjoint(args):
        print(PAGE)
        return
    parser = OptionParser("report")
    parser.add_argument("run", nargs="?", default="runs", type=Path)
    parser.add_argument("--explained", nargs="+", default=[], type=Path)
    parser.add_argument("--panel", nargs="+", default=[], type=int, metavar="EPOCH")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(args)
    for place in options.explained:
        if not (place / "figure.png").is_file():
            raise ValueError(f"folder {place} holds no figure.png of `litcam explain`")
    if options.out and options.out.exists() and not options.out.is_file():
        # Written whole or not at all, by a rename: that would take the place of a device.
        raise ValueError(f"--out {options.out} is no ordinary file; give another")
    folder = find_run(options.run)
    try:
        beside = options.out and options.out.with_name("panel.png")
        panel = write_panel(folder, options.panel, beside) if options.panel else None
        file = write_report(folder, options.out, explained=options.explained)
    except OSError as error:
        where = options.out or folder
        raise ValueError(f"cannot write to {where}: {error.strerror}; give --out FILE") from None
    if panel:
        print(panel)
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB): open it in a browser")


def find_run(folder: Path) -> Path:
    """`folder` if it is a run's, else the newest run below it, else itself.

    Raises:
        ValueError: there is no such folder; the message has close matches.
    """
    if not folder.is_dir():
        beside = [at.name for at in folder.parent.glob("*/")]
        near = [str(folder.parent / name) for name in get_close_matches(folder.name, beside, n=3)]
        hint = f"did you mean {', '.join(near)}?" if near else "give the folder of a run"
        raise ValueError(f"run {folder} does not exist; {hint}")
    if any((folder / sign).exists() for sign in SIGNS):
        return folder
    below = [path for sign in SIGNS for path in folder.rglob(sign)]
    newest = max(below, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return folder
    return newest.parent if newest.name == "metrics.csv" else newest.parent.parent
