"""What a validation batch asks of a device, counted on a CPU: operators, operations and bytes.

    python benchmarks/speed/operators.py                       # ResNet-50 and ViT-B/16, for an H100
    python benchmarks/speed/operators.py --models swin_base_patch4_window7_224 --batch 256 --chip L4
    python benchmarks/speed/operators.py --host                # what the CPU does for a batch

It is arithmetic and no measurement. The last batch of a validation through Lightning, `bf16-mixed`,
is counted at batches of four and eight images, and each operator carried on to `--batch` along the
line through both. Views and empty tensors are no work. Bytes are those of every operator's inputs
and outputs, as if nothing stayed in a cache; a chip's time for an operator is the longer of its
bytes at the memory's bandwidth and its operations at the peak (half of it in float32, for TF32).
Operators of a CPU are not quite those of a GPU: autocast has another list there, and an operator
may be one kernel or several.

`--host` is a measurement: the CPU's milliseconds for a validation batch of a network of three
layers on images of 16 pixels, where the work on the numbers is next to nothing; 1,000 batches a
validation, interleaved, medians of five.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import timm
import torch
from chips import CHIPS, Chip
from gpu_plan import PRECISION, WAYS
from timing import measure
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from validation import InMemory, Validated, quieten

from litcam.commands.cli.errors import in_one_line, unknown

aten = torch.ops.aten
SMALL = (4, 8)  # images of the batches that are counted; the shown ones come before the last
# What allocates and does not write, or only asks.
NO_WORK = ("empty", "empty_like", "empty_strided", "new_empty", "detach", "lift_fresh", "resize_")


@dataclass(frozen=True)
class Work:
    """What an operator does.

    Attributes:
        name: of the operator.
        flops: of matrix products and convolutions, a multiply-add being two.
        num_bytes: of its inputs and outputs.
        rounded: whether it computes in bfloat16.
    """

    name: str
    flops: float
    num_bytes: float
    rounded: bool

    def seconds(self, chip: Chip) -> float:
        """At best, on this chip."""
        peak = chip.flops if self.rounded else chip.flops / 2
        return max(self.flops / peak, self.num_bytes / chip.bandwidth)


class Counter(TorchDispatchMode):
    """Keeps the `work` of all operators that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts one, or the parts of one that has no kernel of its own."""
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        if func.namespace == "aten" and not func.is_view and packet.__name__ not in NO_WORK:
            flops = _count_flops(packet, args, kwargs, output)
            inputs, outputs = _tensors((args, kwargs)), _tensors(output)
            num_bytes = sum(map(_size, [*inputs, *outputs]))
            rounded = any(tensor.dtype == torch.bfloat16 for tensor in inputs)
            self.work.append(Work(packet.__name__, flops, num_bytes, rounded))
        return output


def _count_flops(packet: Any, args: Any, kwargs: Any, output: Any) -> float:
    # A CPU's fused attention is not in torch's table.
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    count = flop_registry.get(packet)
    return count(*args, **kwargs, out_val=output) if count else 0


def _tensors(value: Any) -> list[Tensor]:
    return list(
        {id(leaf): leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}.values()
    )


def _size(tensor: Tensor) -> int:
    # What is expanded is read once.
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())


def count(name: str, way: str, batch: int, image_size: int) -> list[Work]:
    """The work of the last of three batches of a validation: the step, and the callbacks' part."""
    torch.manual_seed(0)
    counters: list[Counter] = []

    def begin(*args: Any, **kwargs: Any) -> None:
        counters.append(Counter())
        counters[-1].__enter__()

    def end(*args: Any, **kwargs: Any) -> None:
        counters[-1].__exit__(None, None, None)

    first, last = pl.Callback(), pl.Callback()
    first.on_validation_batch_start = begin  # type: ignore[method-assign]
    last.on_validation_batch_end = end  # type: ignore[method-assign]
    loader = DataLoader(InMemory(3 * batch, image_size), batch, collate_fn=lambda batch: batch)
    with TemporaryDirectory() as folder:
        trainer = _trainer(folder, [first, *WAYS[way](), last], precision=PRECISION)
        trainer.validate(Validated(timm.create_model(name)), loader, verbose=False)
    return counters[-1].work


def _trainer(folder: str, callbacks: list[pl.Callback], **kwargs: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **kwargs,
    )


def carry_on(few: list[Work], many: list[Work], batch: int) -> list[Work]:
    """From batches of `SMALL` images to one of `batch`, operator by operator.

    Raises:
        RuntimeError: if it depends on the number of images which operators run.
    """
    if [work.name for work in few] != [work.name for work in many]:
        counts = f"{len(few)} for {SMALL[0]} images, {len(many)} for {SMALL[1]}"
        raise RuntimeError(f"operators depend on the number of images: {counts}")
    share = (batch - SMALL[0]) / (SMALL[1] - SMALL[0])

    def line(start: float, end: float) -> float:
        return start + share * (end - start)

    return [
        Work(a.name, line(a.flops, b.flops), line(a.num_bytes, b.num_bytes), a.rounded)
        for a, b in zip(few, many, strict=True)
    ]


def measure_host(num_batches: int = 1000, rounds: int = 5) -> dict[str, float]:
    """Milliseconds of the CPU for a validation batch of almost no network, by way."""
    data = InMemory(4 * num_batches, 16)
    loader = DataLoader(data, 4, collate_fn=lambda batch: batch)
    layers = nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000)
    module = Validated(nn.Sequential(*layers))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as folder:
        trainers = {way: _trainer(folder, WAYS[way]()) for way in WAYS}
        for number in range(rounds + 1):
            for way, trainer in trainers.items():
                validate = partial(trainer.validate, module, loader, verbose=False)
                taken = measure(validate, torch.device("cpu"))
                if number:  # the first looks for the layer
                    seconds[way].append(taken)
    return {way: 1e3 * median(taken) / num_batches for way, taken in seconds.items()}


def find_by_name(name: str) -> Chip:
    """A chip of the table, by what it is called there."""
    chips = {chip.name: chip for chip in CHIPS.values()}
    if name not in chips:
        raise ValueError(unknown("chip", name, chips))
    return chips[name]


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet50", "vit_base_patch16_224"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--chip", default="H100 SXM")
    parser.add_argument("--launch", type=float, default=5.0, help="microseconds for an operator")
    parser.add_argument("--host", action="store_true", help="measure the CPU's part")
    options = parser.parse_args()
    if options.host:
        quieten()
        print("| way | the CPU's ms a batch |\n|---|---|")
        for way, milliseconds in measure_host().items():
            print(f"| {way} | {milliseconds:.2f} |")
        return
    chip = find_by_name(options.chip)
    quieten()
    print(
        f"The last batch of a validation, {options.batch} images at {options.image_size}, "
        f"{PRECISION}, counted on a CPU, torch {torch.__version__}; {chip.name}: "
        f"{chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e12:.2f} TB/s\n"
    )
    columns = ["model", "way", "operators", "GFLOP", "GB"]
    columns += ["ms at the chip's peaks", f"ms to launch, {options.launch:g} µs each"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for name in options.models:
        for way in WAYS:
            few, many = (count(name, way, batch, options.image_size) for batch in SMALL)
            work = carry_on(few, many, options.batch)
            cells = [
                f"{len(work)}",
                f"{sum(each.flops for each in work) / 1e9:.1f}",
                f"{sum(each.num_bytes for each in work) / 1e9:.2f}",
                f"{1e3 * sum(each.seconds(chip) for each in work):.2f}",
                f"{options.launch * len(work) / 1e3:.2f}",
            ]
            print("| " + " | ".join([name, way, *cells]) + " |", flush=True)


if __name__ == "__main__":
    with in_one_line():
        main()
