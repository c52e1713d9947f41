"""What `gpu.py` runs, where, and how it tells of it."""

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from timing import measure_memory
from torch.utils.data import DataLoader
from validation import InMemory, placed_on

from litcam.callbacks import GradCAM

PRECISION: Any = "bf16-mixed"
NOT_COUNTED = "–"
WAYS: dict[str, Callable[[], list[pl.Callback]]] = {
    "plain": list,
    "GradCAM(metrics=())": lambda: [GradCAM(metrics=(), indices=range(8))],
    "GradCAM()": lambda: [GradCAM(indices=range(8))],
}


@dataclass(frozen=True)
class Plan:
    """What is run, and where.

    Attributes:
        device: that everything runs on.
        compared: timm models whose maps are compared with the CPU's.
        validated: those that validate.
        trained: those that are trained: CNNs, ViTs, and encoders of a masked autoencoder.
        batch: images at once.
        num_images: of a validation.
        rounds: validations of each way that are timed, after one that is not.
        steps: of a training; the first third is not timed.
        backend: of `torch.compile`.
        image_size: in pixels.
    """

    device: torch.device
    compared: Sequence[str] = (
        *("resnet50", "convnext_tiny", "vit_base_patch16_224"),
        *("swin_base_patch4_window7_224", "mobilenetv3_large_100"),
    )
    validated: Sequence[str] = ("resnet50", "vit_base_patch16_224")
    trained: tuple[str, str, str] = ("resnet50", *("vit_base_patch16_224",) * 2)
    batch: int = 128
    num_images: int = 2000
    rounds: int = 3
    steps: int = 45
    backend: str = "inductor"
    image_size: int = 224

    def loader(self, num_images: int) -> DataLoader[Any]:
        """Batches that lie on the device already."""
        data = InMemory(num_images, self.image_size, self.device)
        return DataLoader(data, self.batch, collate_fn=lambda batch: batch)

    def trainer(self, folder: str | Path, **options: Any) -> pl.Trainer:
        """A Trainer with the recipe of `trainer/gpu.yaml`, which writes next to nothing."""
        return pl.Trainer(
            **placed_on(self.device),
            default_root_dir=folder,
            precision=PRECISION,
            benchmark=True,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )

    def memory(self, call: Callable[[], object]) -> str:
        """Peak MiB of a call; it is called all the same where nobody counts them."""
        if self.device.type == "cuda":
            return f"{measure_memory(call, self.device):.0f}"
        call()
        return NOT_COUNTED


def small(device: torch.device) -> Plan:
    """All parts in a minute, on a CPU too; its numbers mean nothing."""
    tiny = ("test_resnet", "test_vit")
    sizes: dict[str, Any] = {"batch": 4, "num_images": 8, "rounds": 1, "steps": 3}
    trained = ("test_resnet", "test_vit", "test_vit")
    return Plan(device, tiny, tiny, trained, backend="eager", image_size=160, **sizes)


class Report:
    """Prints rows, and remembers what failed."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def table(self, title: str, *columns: str) -> None:
        """Begins a table."""
        print(f"\n### {title}\n\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))

    def row(self, *cells: object) -> None:
        """A row of it."""
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Goes on after an error, with a row that tells of it."""
        start = time.perf_counter()
        try:
            yield
        except Exception as error:  # a GPU, a compiler and three libraries raise anything
            line = " ".join(str(error).split())[:200]
            self.failures.append(what)
            self.row(what, f"failed: {type(error).__name__}: {line}")
        print(f"{what}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        gc.collect()
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
