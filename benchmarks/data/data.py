"""What a training image costs on its way from the disk: litcam beside the usual loaders, at 224.

    python benchmarks/data/data.py DIR                      # DIR/<class>/<photo>, or DIR/train/…
    litcam convert DIR SHARDS && python benchmarks/data/data.py DIR --shards SHARDS

All make the same: batches of 64 random resized crops, bicubic, half of them mirrored, normalised
float32. The peers' workers send floats; litcam's send uint8 and the device normalises: the CPU
here, in the main process, and counted. "Decoding" is only that, by litcam's own decoder in as many
processes: what no loader of these files can pass. Loaders take turns in one run, ratios are medians
of the rounds' own; workers live through all rounds, and the first one only warms up. CPU time is of
the main process and its workers: what to look at where other work shares the cores. "A core" is how
many images one does a second, all processes together: what to plan a machine by. The lines "+
RandAugment" put timm's `rand-m9-mstd0.5-inc1` on top, timm itself without `mstd0.5`, torchvision's
(two operations of magnitude 9 out of 30, which is weaker) with ImageFolder. Linux only. It needs
`pip install webdataset`.
"""

import argparse
import logging
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import timm
import torch
import torchvision
import webdataset as wds
from timm.data import create_dataset, create_loader
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from litcam.datamodules import ImageNetDataModule
from litcam.datamodules.pixels.data_config import data_config
from litcam.datamodules.pixels.decode import decode
from litcam.datamodules.pixels.rand_augment import RECIPE

SIZE, CONFIG = 224, data_config("")  # ImageNet's mean and std, bicubic
FIRST, CEILING = "ImageFolder, PIL, floats", "decoding alone"
UINT8 = "litcam, folders, for a GPU to normalise"
UINT8_RAND = "the same + RandAugment"
Batches = Callable[[], Iterator[Tensor]]


class Pass(NamedTuple):
    """What taking a number of images took, the last two in seconds of CPU time."""

    images: int
    seconds: float
    main: float
    workers: float


class Decoding(ImageFolder):
    """Nothing but the decoding: reads and decodes a photo and hands on only that it did."""

    def __getitem__(self, index: int) -> Any:
        path, label = self.samples[index]
        decode(Path(path).read_bytes(), path)
        return label


def usual_transform(*, augment: bool = False) -> transforms.Compose:
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [
        transforms.RandomResizedCrop(SIZE, interpolation=bicubic),
        transforms.RandomHorizontalFlip(),
        *([transforms.RandAugment(interpolation=bicubic)] if augment else []),
        transforms.ToTensor(),
        transforms.Normalize(CONFIG.mean, CONFIG.std),
    ]
    return transforms.Compose(steps)


def from_folder(folder: Path, kwargs: dict[str, Any], *, augment: bool = False) -> Batches:
    dataset = ImageFolder(str(folder), usual_transform(augment=augment))
    loader = DataLoader(dataset, shuffle=True, drop_last=True, **kwargs)
    return lambda: (images for images, _ in loader)


def from_timm(folder: Path, kwargs: dict[str, Any], *, augment: bool = False) -> Batches:
    loader = create_loader(
        create_dataset("", root=str(folder)),
        (3, SIZE, SIZE),
        is_training=True,
        use_prefetcher=False,  # made for CUDA
        interpolation=CONFIG.interpolation,
        mean=CONFIG.mean,
        std=CONFIG.std,
        color_jitter=None,
        # Without the spread, with which timm asks Pillow 13 for posters of no bits.
        auto_augment="rand-m9-inc1" if augment else None,
        **{key: kwargs[key] for key in ("batch_size", "num_workers", "persistent_workers")},
    )
    return lambda: (images for images, _ in loader)


def from_tars(folder: Path, to: Path, kwargs: dict[str, Any]) -> Batches:
    source = ImageFolder(str(folder))
    to.mkdir()
    # In a random order, as its users have to write them; at least a file for each worker.
    order = torch.randperm(len(source)).tolist()
    count = max(kwargs["num_workers"], len(order) // 300, 1)
    for number in range(count):
        with wds.TarWriter(str(to / f"{number:04}.tar")) as tar:
            for index in order[number::count]:
                path, label = source.samples[index]
                tar.write({"__key__": f"{index:08}", "jpg": Path(path).read_bytes(), "cls": label})
    dataset = (
        wds.WebDataset([str(path) for path in sorted(to.iterdir())], shardshuffle=count)
        .shuffle(500)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(usual_transform(), int)
        .batched(kwargs["batch_size"], partial=False)
    )
    loader = wds.WebLoader(dataset, **{**kwargs, "batch_size": None})
    return lambda: (images for images, _ in loader)


def from_litcam(
    root: Path, kwargs: dict[str, Any], *, augment: bool = False, uint8: bool = False
) -> Batches:
    data = ImageNetDataModule(
        root,
        kwargs["batch_size"],
        num_workers=kwargs["num_workers"],
        auto_augment=RECIPE if augment else "",
    )
    data.setup("fit")
    loader = data.train_dataloader()
    if uint8:
        return lambda: (batch["image"] for batch in loader)
    return lambda: (data.on_after_batch_transfer(batch, 0)["image"] for batch in loader)


def only_decoding(folder: Path, kwargs: dict[str, Any]) -> Batches:
    loader = DataLoader(Decoding(str(folder)), shuffle=True, drop_last=True, **kwargs)
    return lambda: iter(loader)


def link_photos(source: Path, root: Path, num_images: int) -> Path:
    """Make ``train`` and ``val`` of links to class folders, as often as a long pass takes."""
    photos = len(ImageFolder(str(source)))
    for number in range(max(1, round(num_images / photos))):
        for split in ("train", "val") if number == 0 else ("train",):
            (root / split).mkdir(parents=True, exist_ok=True)
            for folder in filter(Path.is_dir, source.iterdir()):
                (root / split / f"{folder.name}_{number}").symlink_to(folder.resolve())
    return root / "train"


def check(name: str, batch: Tensor, batch_size: int) -> None:
    """Refuse to compare loaders that do not hand out normalised floats, but for those named so."""
    right = batch.shape == (batch_size, 3, SIZE, SIZE) and batch.dtype == torch.float32
    if name not in (CEILING, UINT8, UINT8_RAND) and not (
        right and batch.mean().abs() < 1 and 0.5 < batch.std() < 2
    ):
        raise RuntimeError(f"{name} hands out {batch.dtype} {tuple(batch.shape)}, not as the rest")


def cpu_seconds(processes: set[Any]) -> float:
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in user and in kernel mode
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(batches: Batches, num_images: int, workers: set[Any]) -> Pass:
    """Take batches, in as many passes over the loader as it needs, and count."""
    images, start = 0, time.perf_counter()
    main, others = time.process_time(), cpu_seconds(workers)
    while images < num_images:
        images += sum(len(batch) for batch in batches())
    seconds = time.perf_counter() - start
    return Pass(images, seconds, time.process_time() - main, cpu_seconds(workers) - others)


def report(rounds: dict[str, list[Pass]]) -> None:
    """Print a row for each loader: medians, and medians of each round's own ratios."""
    print(
        "| loader | images/s | CPU, ms an image | in the main process | images/s a core "
        "| images/s (×) | CPU (×) | share of decoding's images/s | of its CPU |"
    )
    print("|" + "---|" * 9)
    speeds = {name: [p.images / p.seconds for p in passes] for name, passes in rounds.items()}
    mains = {name: [1000 * p.main / p.images for p in passes] for name, passes in rounds.items()}
    costs = {
        name: [1000 * (p.main + p.workers) / p.images for p in passes]
        for name, passes in rounds.items()
    }
    for name in rounds:
        cells = [f"{median(speeds[name]):.0f}"]
        cells += [f"{median(times[name]):.2f}" for times in (costs, mains)]
        cells.append(f"{1000 / median(costs[name]):.0f}")
        for mine, peers in (
            (speeds[name], speeds[FIRST]),
            (costs[name], costs[FIRST]),
            (speeds[name], speeds[CEILING]),
            (costs[CEILING], costs[name]),
        ):
            cells.append(f"{median(a / b for a, b in zip(mine, peers, strict=True)):.2f}")
        print("| " + " | ".join([name, *cells]) + " |")


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--shards", type=Path, help="what `litcam convert` made of DIR")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=2400, help="of a pass")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)  # one process takes one core
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    kwargs = {
        "batch_size": options.batch,
        "num_workers": options.workers,
        "persistent_workers": True,
        "prefetch_factor": 4,
    }
    source = options.folder / "train" if (options.folder / "train").is_dir() else options.folder
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "photos")
        folder = link_photos(source, root, options.images)
        loaders: dict[str, Batches] = {
            FIRST: from_folder(folder, kwargs),
            "timm create_loader": from_timm(folder, kwargs),
            "WebDataset, PIL, floats": from_tars(folder, Path(scratch, "tars"), kwargs),
            "litcam, folders": from_litcam(root, kwargs),
            UINT8: from_litcam(root, kwargs, uint8=True),
            "ImageFolder + torchvision's RandAugment": from_folder(folder, kwargs, augment=True),
            "timm + RandAugment": from_timm(folder, kwargs, augment=True),
            UINT8_RAND: from_litcam(root, kwargs, uint8=True, augment=True),
        }
        if options.shards:
            loaders["litcam, shards"] = from_litcam(options.shards, kwargs)
        loaders[CEILING] = only_decoding(folder, kwargs)
        run(loaders, len(ImageFolder(str(folder))) // 2, options)


def run(loaders: dict[str, Batches], num_images: int, options: argparse.Namespace) -> None:
    """Measure them in turns and print what was found."""
    rounds: dict[str, list[Pass]] = {name: [] for name in loaders}
    workers: dict[str, set[Any]] = {}
    for number in range(options.rounds + 1):
        for name, batches in loaders.items():
            if number == 0:
                before = set(multiprocessing.active_children())
                for batch in batches():
                    check(name, batch, options.batch)
                workers[name] = {p.pid for p in {*multiprocessing.active_children()} - before}
            else:
                rounds[name].append(measure(batches, num_images, workers[name]))
    print(
        f"Passes of {rounds[FIRST][0].images} photos, {SIZE} × {SIZE}, batches of {options.batch}, "
        f"{options.workers} workers, {options.rounds} rounds; {platform.machine()}, "
        f"{os.cpu_count()} cores, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, timm {timm.__version__}, webdataset {wds.__version__}.\n"
    )
    report(rounds)


if __name__ == "__main__":
    main()
