"""Where the demo's network looks, with and without a cue beside the objects, and untrained.

    python benchmarks/maps/shortcut.py  # trains 3 seeds of each: half an hour on two cores
    python benchmarks/maps/shortcut.py --seeds 0

Trains `demo.yaml` from scratch on generated images, once as they are and once with a patch in the
corner whose colour tells the class (`--data.shortcut true`, in the validation images too). The
figures are those that `GradCAM` logs in the last epoch, and the alarm it raised; *untrained* is the
same network with random weights, on the same images. Runs that are there are not repeated.
"""

import argparse
import csv
import json
import subprocess
from pathlib import Path

import timm
import torch

from litcam.datamodules import SyntheticDataModule
from litcam.explain import CAM, PointingGame

QUIET = """\
trainer:
  enable_progress_bar: false
  logger: [{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: runs}}]
  callbacks: [{class_path: ModelCheckpoint, init_args: {filename: last}}, {class_path: GradCAM}]
"""
NETWORK = {"channels": [24, 48, 96, 192], "stem_width": 16, "output_stride": 8, "avg_down": False}
COLUMNS = ("acc1", "pointing_game", "pointing_game_chance", "energy_inside", "energy_inside_chance")


def train(seed: int, shortcut: bool) -> Path:
    """The folder of a run, which is done if it is not there."""
    name = f"{'shortcut' if shortcut else 'plain'}-{seed}"
    folder = Path("runs") / name / "version_0"
    if not (folder / "report.html").exists():
        Path("quiet.yaml").write_text(QUIET)
        command = ["litcam", "fit", "--config", "demo.yaml", "--config", "quiet.yaml"]
        command += ["--seed_everything", str(seed), "--data.seed", str(seed)]
        command += ["--data.shortcut", str(shortcut).lower(), "--trainer.logger.name", name]
        subprocess.run(command, check=True)
    return folder


def read(folder: Path) -> dict[str, str]:
    """The last epoch's figures, and the epoch of the alarm."""
    with (folder / "metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row.get("val/acc1")][-1]
    values = {name.rpartition("/")[2]: value for name, value in last.items()}
    alarms = folder / "gradcam" / "alarms.jsonl"
    lines = alarms.read_text().splitlines() if alarms.exists() else []
    raised = [f"epoch {found['epoch']}" for found in map(json.loads, lines)]
    figures = {name: f"{float(values[name]):.3f}" for name in COLUMNS}
    return {**figures, "alarm": ", ".join(raised) or "none"}


@torch.no_grad()
def untrained(seed: int) -> float:
    """The pointing game of a network with random weights, on the validation images."""
    data = SyntheticDataModule(1, seed=seed)
    data.setup("validate")
    torch.manual_seed(seed)
    network = timm.create_model("resnet10t", num_classes=data.num_classes, **NETWORK).eval()
    game = PointingGame()
    with CAM(network) as cam:
        for batch in data.val_dataloader():
            batch = data.on_after_batch_transfer(batch, 0)
            network(batch["image"])
            game.update(cam(batch["label"]), batch["mask"])
    return float(game.compute())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    print("| images | seed | " + " | ".join(COLUMNS) + " | untrained: pointing_game | alarm |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    for shortcut in (False, True):
        for seed in seeds:
            figures = read(train(seed, shortcut))
            alarm = figures.pop("alarm")
            beside = "" if shortcut else f"{untrained(seed):.3f}"
            cells = ["shortcut" if shortcut else "plain", str(seed), *figures.values()]
            print("| " + " | ".join([*cells, beside, alarm]) + " |", flush=True)


if __name__ == "__main__":
    main()
