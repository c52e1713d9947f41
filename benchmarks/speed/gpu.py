"""One command for a machine with a GPU: the tables of docs/gpu.md, in less than 15 minutes.

    python -m benchmarks --gpu                    # from the repository's folder
    python -m benchmarks --device cpu --small     # the same parts, tiny: whether they run at all

It needs torch, timm, Lightning, torchmetrics and litcam (`pip install .`), no data and no network:
weights and images are random. Each part prints Markdown as it goes; a part or a row that fails says
so in its place, the rest goes on, and the exit status is 1. The parts:

1. maps in float32 (without TF32) beside those of the CPU, and in bfloat16 beside those in float32
2. a whole validation of 2,000 images through Lightning: plain, with `GradCAM(metrics=())` and with
   `GradCAM()`, eager and compiled, with speed and peak memory
3. training steps: with and without channels last, eager and compiled
4. how often a training step and a validation wait for the GPU, by CUDA's own debug mode
"""

import argparse
import copy
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import timm
import torch
import torchmetrics
from chips import count_flops, tell_peak, tell_speed
from gpu_plan import PRECISION, WAYS, Plan, Report, small
from timing import describe_machine, measure
from torch import Tensor, nn
from torch.utils.data import DataLoader
from validation import Validated, quieten

from litcam.commands.cli.devices import find_device
from litcam.explain import CAM


def compare(plan: Plan, report: Report) -> None:
    """Part 1: maps of the same images and classes, here and on the CPU."""
    columns = "model | layer | same layer | logits differ by | maps differ by | bfloat16 maps"
    title = "Maps in [0, 1], on this device and on the CPU; in bfloat16 and in float32"
    report.table(title, *columns.split(" | "))
    for name in plan.compared:
        with report.attempt(name), without_tf32():
            torch.manual_seed(0)
            there = timm.create_model(name).eval()
            here = copy.deepcopy(there).to(plan.device)
            side = there.pretrained_cfg["input_size"][-1]
            images = torch.randn(4, 3, side, side)
            layer, logits, classes, maps = explain(there, images)
            there_too, same_logits, _, same_maps = explain(here, images.to(plan.device), classes)
            with torch.autocast(plan.device.type, torch.bfloat16):
                _, _, _, rounded = explain(here, images.to(plan.device), classes)
            apart = (logits - same_logits).abs().max() / logits.abs().max()
            worst = (maps - same_maps).abs().max()
            told = f"{worst:.1e}" + ("" if worst < 1e-2 else ", too much")
            if worst >= 1e-2 or layer != there_too:
                report.failures.append(f"the maps of {name}")
            alike = torch.corrcoef(torch.stack([maps.flatten(), rounded.flatten()]))[0, 1]
            same = "yes" if layer == there_too else f"no: {there_too}"
            report.row(name, layer, same, f"{apart:.1e}", told, f"correlate {alike:.4f}")


@contextmanager
def without_tf32() -> Iterator[None]:
    """Float32 as a CPU has it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def explain(
    network: nn.Module, images: Tensor, classes: Tensor | None = None
) -> tuple[str, Tensor, Tensor, Tensor]:
    """Layer, logits, classes, and maps `(batch, height, width)` in [0, 1], on the CPU."""
    with CAM(network) as cam, torch.inference_mode():
        logits = network(images)
    classes = logits.argmax(1) if classes is None else classes.to(images.device)
    assert cam.target_layer is not None
    maps = cam.heatmaps(classes)
    return cam.target_layer.name, logits.float().cpu(), classes.cpu(), maps.cpu()


def validate(plan: Plan, report: Report) -> None:
    """Part 2: whole validations."""
    report.table(
        f"A validation of {plan.num_images} images at {plan.image_size}, batch of {plan.batch}, "
        f"{PRECISION}, median of {plan.rounds}",
        *("model", "way", "s", "×", "images/s", "speed of the plain forward", "peak memory (MiB)"),
        "maps",
    )
    loader = plan.loader(plan.num_images)
    for name in plan.validated:
        for compiled in (False, True):
            kind = f"compiled ({plan.backend})" if compiled else "eager"
            with report.attempt(f"{name}, {kind}"), TemporaryDirectory() as folder:
                validate_one(plan, report, loader, name, compiled, folder)


def validate_one(
    plan: Plan, report: Report, loader: DataLoader[Any], name: str, compiled: bool, folder: str
) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    image = torch.randn(1, 3, plan.image_size, plan.image_size)
    flops = plan.num_images * count_flops(torch.no_grad()(lambda: network(image)))
    if compiled:
        network.compile(backend=plan.backend)
    module, seconds, memory = Validated(network), {way: list[float]() for way in WAYS}, {}
    folders = {way: Path(folder, str(number)) for number, way in enumerate(WAYS)}
    trainers = {way: plan.trainer(folders[way], callbacks=make()) for way, make in WAYS.items()}
    logged: dict[str, Any] = {}

    def call(way: str) -> None:
        (logged[way],) = trainers[way].validate(module, loader, verbose=False)

    for number in range(plan.rounds + 1):
        for way in WAYS:
            spent = measure(lambda way=way: call(way), plan.device)
            if number:  # the first one compiles, and looks for the layer
                seconds[way].append(spent)
    for way in WAYS:
        memory[way] = plan.memory(lambda way=way: call(way))
    plain = median(seconds["plain"])
    for way in WAYS:
        spent = median(seconds[way])
        pairs = zip(seconds[way], seconds["plain"], strict=True)
        ratio = median(mine / theirs for mine, theirs in pairs)
        speed = tell_speed(flops, plain, plan.device) if way == "plain" else ""
        kind = "compiled" if compiled else "eager"
        cells = f"{spent:.3g}", f"{ratio:.2f}", f"{plan.num_images / spent:.0f}", speed, memory[way]
        report.row(name, f"{kind}, {way}", *cells, tell_maps(logged[way], folders[way]))


def tell_maps(logged: dict[str, float], folder: Path) -> str:
    """What was explained, so that a figure is not of a callback that gave up."""
    drawn = len([*folder.rglob("gradcam/*/predicted-*.jpg")])
    measured = any(name.startswith("val/gradcam/") for name in logged)
    return f"{drawn} drawn, {'all' if measured else 'none'} measured"


def main(args: Sequence[str] | None = None) -> None:
    """Runs all parts, and exits with 1 where one failed or there is no GPU."""
    from gpu_training import count_waits, train

    purpose = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=purpose)
    parser.add_argument("--gpu", action="store_true", help="on the first CUDA GPU")
    parser.add_argument("--device", help="on another one, such as cuda:1 or cpu")
    parser.add_argument("--small", action="store_true", help="tiny, to see whether it runs")
    options = parser.parse_args(args)
    if not options.gpu and not options.device:
        parser.error("give --gpu, or --device cpu --small")
    try:
        device = find_device(options.device or "cuda")
    except ValueError as error:
        reason = error if options.device else "there is no CUDA GPU here"
        print(f"benchmarks: {reason}; --device cpu --small tries all parts", file=sys.stderr)
        sys.exit(1)
    quieten()
    torch.set_float32_matmul_precision("high")
    plan, report = small(device) if options.small else Plan(device), Report()
    print(
        f"`python -m benchmarks`, {describe_machine(device)}, timm {timm.__version__}, lightning "
        f"{lightning.__version__}, torchmetrics {torchmetrics.__version__}, "
        f"{time.strftime('%d %B %Y')}; {tell_peak(device)}."
        + (" Tiny networks: these numbers mean nothing." if options.small else "")
    )
    start = time.perf_counter()
    for part in (compare, validate, train, count_waits):
        with report.attempt(f"part {part.__name__}"):
            part(plan, report)
    failed = f"; failed: {', '.join(report.failures)}" if report.failures else ""
    print(f"\nAll in {(time.perf_counter() - start) / 60:.1f} minutes{failed}.")
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
