"""What explaining a whole validation costs, through Lightning: litcam beside a second pass.

    python benchmarks/speed/validation.py                         # ResNet-34 and Swin-B, as a table
    python benchmarks/speed/validation.py --models resnet34 vit_base_patch16_224 --rounds 3
    python benchmarks/speed/validation.py --device cuda --precision bf16 --batch 128 --without_peers
    python benchmarks/speed/validation.py --compile --without_peers   # beside a compiled validation
    python benchmarks/speed/validation.py --work --threads 1  # work of a CPU that is shared

Images, labels and masks lie in the device's memory, so that loading costs next to nothing. Every
way validates all of them; times are of `trainer.validate`, with what a callback computes, draws and
writes at its end. All ways run in one process, interleaved, and the figures are medians of the
rounds' ratios to the plain validation of the same round. The ways:

- GradCAM(): every image explained, pointing game, energy inside, sparseness, drift and blank maps
  of all of them, pictures of eight, which lie in the first batch here: one of a few that are gone
  through backward twice. Network and layer are named; a run that looks for them does so once, in
  its first validation, which is the second column; its eight are in eight batches.
- GradCAM(metrics=()): only the eight shown images. That is one of a few batches; of a validation of
  thousands it is next to nothing.
- the peers, in a callback of their own that explains each batch again after the validation step,
  with the same pointing game and energy inside of their maps, and no pictures. A peer's hooks are
  on only for its own forward. They come with `pip install -e ".[dev]"`.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import timm
import torch
import torch.nn.functional as F
from cam import LAYERS, TRANSFORMS
from chips import count_flops, tell_peak, tell_speed
from timing import describe_machine, measure, measure_work
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from litcam.callbacks import GradCAM
from litcam.commands.cli.devices import find_device
from litcam.commands.cli.errors import in_one_line
from litcam.explain import EnergyInside, PointingGame

Explain = Callable[[Tensor, Tensor], Tensor]
# Without peers only.
SMALLER = {"vit_small_patch16_224": "blocks.11.norm1", "swin_tiny_patch4_window7_224": "norm"}
PRECISIONS: dict[str, Any] = {"32-true": "32-true", "bf16": "bf16-mixed"}  # Lightning's names
WAYS = (
    "plain",
    "GradCAM(), first validation",
    "GradCAM()",
    "GradCAM(metrics=())",
    "torchcam in a second pass",
    "pytorch-grad-cam in a second pass",
)


class InMemory(Dataset[dict[str, Tensor]]):
    """Noise with random labels and rectangles as masks, on a device; gives whole batches."""

    def __init__(self, num_images: int, image_size: int, device: torch.device | str = "cpu"):
        generator = torch.Generator().manual_seed(0)
        shape = num_images, 3, image_size, image_size
        self.images = torch.randn(shape, generator=generator)
        self.labels = torch.randint(1000, (num_images,), generator=generator)
        self.masks = torch.zeros(num_images, image_size, image_size, dtype=torch.bool)
        places = torch.randint(image_size // 2, (num_images, 2), generator=generator)
        for mask, (y, x) in zip(self.masks, places.tolist(), strict=True):
            mask[y : y + image_size // 3, x : x + image_size // 3] = True
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        self.masks = self.masks.to(device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The images of a batch, as `DataLoader` asks for them."""
        index = torch.tensor(indices, device=self.images.device)
        named = {"image": self.images, "label": self.labels, "mask": self.masks}
        return {**{name: values[index] for name, values in named.items()}, "index": index}


class Validated(pl.LightningModule):
    """Loss and accuracy of a network, as anybody has them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One forward."""
        logits, labels = self.network(batch["image"]), batch["label"]
        self.log("val/loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        right = (logits.argmax(1) == labels).float().mean()
        self.log("val/acc1", right, batch_size=len(labels))


class SecondPass(pl.Callback):
    """Explains each batch once more with `explain(images, labels)`, and measures its maps."""

    def __init__(self, explain: Explain) -> None:
        self.explain = explain
        self.metrics = {"pointing_game": PointingGame(), "energy_inside": EnergyInside()}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leaves inference mode, whose tensors autograd refuses."""
        with torch.inference_mode(False), torch.enable_grad():
            maps = self.explain(batch["image"].clone(), batch["label"].clone())
        for metric in self.metrics.values():
            metric.update(maps, batch["mask"])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs and begins anew."""
        for name, metric in self.metrics.items():
            pl_module.log(f"val/gradcam/{name}", metric.compute())
            metric.reset()


def find_peer(way: str, name: str, network: nn.Module) -> Explain:
    """A peer's Grad-CAM of a batch, `(batch, h, w)`, at its fastest."""
    layer = network.get_submodule(LAYERS[name])
    if way.startswith("torchcam"):
        from torchcam.methods import GradCAM as TorchCAM

        kwargs: dict[str, Any] = {}
        if name in TRANSFORMS:
            kwargs["reshape_transform"] = TRANSFORMS[name]

        def torchcam(images: Tensor, labels: Tensor) -> Tensor:
            with TorchCAM(network, layer, **kwargs) as extractor:
                return extractor(labels.tolist(), network(images))[0]

        return torchcam
    from pytorch_grad_cam import GradCAM as PytorchGradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def pytorch_grad_cam(images: Tensor, labels: Tensor) -> Tensor:
        targets = [ClassifierOutputTarget(label) for label in labels.tolist()]
        with PytorchGradCAM(network, [layer], reshape_transform=TRANSFORMS.get(name)) as cam:
            return torch.from_numpy(cam(images, targets))

    return pytorch_grad_cam


def find_callbacks(way: str, name: str, network: nn.Module) -> list[pl.Callback]:
    """What the trainer gets to explain its validation in this way."""
    named = {"network": "network", "target_layer": SMALLER.get(name) or LAYERS[name]}
    match way:
        case "plain":
            return []
        case "GradCAM(), first validation":
            return [GradCAM()]
        case "GradCAM()":
            return [GradCAM(**named, indices=range(8))]
        case "GradCAM(metrics=())":
            return [GradCAM(**named, metrics=(), indices=range(8))]
    return [SecondPass(find_peer(way, name, network))]


def time_model(name: str, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """For each way the ratio to the plain validation, its seconds, and what it measured."""
    network = timm.create_model(name)
    module, device = Validated(network), options.device
    if options.compile:
        network.compile()
    data = InMemory(options.batch * options.batches, options.image_size, device)
    loader = DataLoader(data, options.batch, collate_fn=lambda batch: batch)
    trainers = {
        way: pl.Trainer(
            default_root_dir=folder / str(number),
            **placed_on(device),
            precision=PRECISIONS[options.precision],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=find_callbacks(way, name, network),
        )
        for number, way in enumerate(options.ways)
    }
    seconds: dict[str, list[float]] = {way: [] for way in options.ways}
    take_time = measure_work if options.work else measure
    logged: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds + 1):
        for way, trainer in trainers.items():
            values: list[Any] = []
            call = partial(validate, trainer, module, loader, values)
            seconds[way].append(take_time(call, device))
            logged[way] = {key: float(value) for key, value in values[0].items()}
    measured = [way for way in WAYS[1:3] if way in logged]
    if missing := [way for way in measured if "val/gradcam/energy_inside" not in logged[way]]:
        raise RuntimeError(f"{missing} explained nothing")
    # The first round is a warm-up.
    pairs = {way: list(zip(seconds[way], seconds["plain"], strict=True))[1:] for way in seconds}
    images = data.images[:1].cpu()
    flops = len(data) * count_flops(torch.no_grad()(lambda: network.cpu().eval()(images)))
    return {
        way: {
            "flops": flops,
            "ratio": median(time / plain for time, plain in pairs[way]),
            "seconds": median(time for time, _ in pairs[way]),
            **logged[way],
        }
        for way in seconds
    }


def validate(
    trainer: pl.Trainer, module: pl.LightningModule, loader: Any, values: list[Any]
) -> None:
    values += trainer.validate(module, loader, verbose=False)


def placed_on(device: torch.device) -> dict[str, Any]:
    """A Trainer's arguments for one device."""
    if device.type == "cpu":
        return {"accelerator": "cpu"}
    return {"accelerator": device.type, "devices": [device.index or 0]}


def quieten() -> None:
    """Silences what a benchmark can do nothing about."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Random weights give maps of nothing now and then, which is said in a line each time.
    logging.getLogger("lightning.pytorch.callbacks.litcam").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*have no `val_dataloader`.*")


def main() -> None:
    """Prints the table as Markdown and saves it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["resnet34", "swin_base_patch4_window7_224"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--image_size", type=int, default=224, help="another one: CNNs only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto", help="such as cpu, cuda or cuda:1")
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true")
    parser.add_argument("--compile", action="store_true", help="the network by torch.compile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed/validation.json"))
    parser.add_argument("--without_peers", action="store_true")
    parser.add_argument("--ways", nargs="+", choices=WAYS[1:], help="these alone, beside plain")
    parser.add_argument("--work", action="store_true", help="the process's time, not the clock's")
    options = parser.parse_args()
    options.ways = options.ways or WAYS[1 : 4 if options.without_peers else None]
    options.ways = ("plain", *options.ways)
    torch.set_num_threads(options.threads)
    quieten()
    torch.manual_seed(0)
    options.device = find_device(options.device)
    machine = describe_machine(options.device)
    print(
        f"{options.batches} batches of {options.batch} at {options.image_size}, "
        f"{options.precision}, {'compiled, ' if options.compile else ''}{options.threads} threads, "
        f"{options.rounds} rounds{' of work' if options.work else ''}; {machine}; "
        f"{tell_peak(options.device)}\n"
    )
    columns = ["model", "plain (s)", "plain, speed", *(f"{way} (×)" for way in options.ways[1:])]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    results = {}
    with TemporaryDirectory() as folder:
        for name in options.models:
            times = results[name] = time_model(name, options, Path(folder) / name)
            cells = [f"{times[way]['ratio']:.2f}" for way in options.ways[1:]]
            seconds = times["plain"]["seconds"]
            speed = tell_speed(times["plain"]["flops"], seconds, options.device)
            row = [name, f"{seconds:.2f}", speed, *cells]
            print("| " + " | ".join(row) + " |", flush=True)
    options.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    with in_one_line():
        main()
