"""What explaining a batch costs: litcam in the forward itself, and its peers beside it.

    python benchmarks/speed/cam.py                  # time and memory, all nine models, as a table
    python benchmarks/speed/cam.py resnet34 --rounds 3
    python benchmarks/speed/cam.py --device cuda --precision bf16 --batch 128
    python benchmarks/speed/cam.py vit_base_patch16_224 --methods gradcam legrad  # time alone

All methods run in one process, interleaved, and the figures are medians of the rounds' ratios to
the plain forward of the same round. Memory is the peak above the loaded model. On a CPU each method
has a process of its own, and there are two peaks: of the process, and of its tensors alone; on CUDA
it is that of the tensors. The peers come with `pip install -e ".[dev]"`; one that is not there is
left out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from statistics import median

import timm
import torch
from chips import count_flops, tell_peak, tell_speed
from timing import describe_machine, measure
from timing import measure_memory as peak_on_cuda
from torch import Tensor, nn

from litcam.commands.cli.devices import find_device
from litcam.commands.cli.errors import in_one_line
from litcam.explain import CAM, VIT_METHODS

# The layers of the paper, in timm's names, and two networks that are common besides.
LAYERS = {
    "resnet50": "layer4",
    "convnext_tiny": "stages.3",
    "resnet34": "layer4",
    "vgg16": "features.28",
    "mobilenetv3_large_100": "blocks.6",
    "regnety_008": "s4",
    "efficientnet_b0": "bn2",
    "vit_base_patch16_224": "blocks.11.norm1",
    "swin_base_patch4_window7_224": "norm",
}
PEERS = {"pytorch-grad-cam": "pytorch_grad_cam", "torchcam": "torchcam", "captum": "captum"}
METHODS = (
    *("plain", "litcam", "litcam first batch"),
    *(name for name, package in PEERS.items() if find_spec(package)),
)
TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "vit_base_patch16_224": lambda t: t[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2),
    "swin_base_patch4_window7_224": lambda t: t.permute(0, 3, 1, 2),
}


def prepare(
    name: str, method: str, network: nn.Module, images: Tensor, precision: str = "32-true"
) -> Callable[[], object]:
    """A call that forwards `images` and, but for `plain`, explains them."""
    call = _prepare(name, method, network, images)
    if precision == "32-true":
        return call
    return torch.autocast(images.device.type, torch.bfloat16)(call)


def _prepare(name: str, method: str, network: nn.Module, images: Tensor) -> Callable[[], object]:
    layer = network.get_submodule(LAYERS[name])
    classes = torch.zeros(len(images), dtype=torch.long, device=images.device)
    if method == "plain":
        return torch.inference_mode()(lambda: network(images))
    if method.startswith("litcam"):
        formula = method.partition(":")[2] or "gradcam"
        target = None if "first" in method or formula in VIT_METHODS else LAYERS[name]

        @torch.inference_mode()
        def litcam() -> Tensor:
            with CAM(network, formula, target) as cam:
                network(images)
            return cam(classes)

        return litcam
    if method == "pytorch-grad-cam":
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        grad_cam = GradCAM(network, [layer], reshape_transform=TRANSFORMS.get(name))
        targets = [ClassifierOutputTarget(int(c)) for c in classes]
        return lambda: grad_cam(images, targets)
    if method == "torchcam":
        from torchcam.methods import GradCAM as TorchCAM

        def torchcam() -> object:
            kwargs = {"reshape_transform": TRANSFORMS[name]} if name in TRANSFORMS else {}
            with TorchCAM(network, layer, **kwargs) as extractor:
                return extractor(classes.tolist(), network(images))

        return torchcam
    from captum.attr import LayerGradCam

    return lambda: LayerGradCam(network, layer).attribute(images, target=classes)


def time_model(
    name: str,
    rounds: int,
    batch: int,
    device: torch.device,
    precision: str = "32-true",
    methods: Sequence[str] = METHODS,
) -> dict[str, float]:
    """Median ratio of each method to the plain forward of its round.

    Also seconds of that forward, and its operations.
    """
    network = timm.create_model(name).eval().to(device)
    images = torch.randn(batch, 3, 224, 224, device=device)
    calls = {method: prepare(name, method, network, images, precision) for method in methods}
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for call in calls.values():  # a warm-up
        call()
    # A small network's few milliseconds drown in noise: at least two seconds of plain forwards.
    rounds = max(rounds, round(2 / measure(calls["plain"], device)))
    for _ in range(rounds):
        for method, call in calls.items():
            seconds[method].append(measure(call, device))
    ratios = {
        method: median(t / p for t, p in zip(seconds[method], seconds["plain"], strict=True))
        for method in methods
    }
    flops = batch * count_flops(torch.no_grad()(lambda: network(images[:1])))
    return {**ratios, "seconds": median(seconds["plain"]), "flops": flops}


def peak_memory(
    name: str, method: str, batch: int, device: torch.device, precision: str
) -> tuple[float, float]:
    """Peak MiB above the loaded model of one call: of the process, NaN on CUDA; of its tensors."""
    if device.type == "cpu":
        return measure_memory(name, method, batch)
    if device.type != "cuda":
        return float("nan"), float("nan")
    network = timm.create_model(name).eval().to(device)
    images = torch.randn(batch, 3, 224, 224, device=device)
    call = prepare(name, method, network, images, precision)
    with torch.inference_mode():
        network(images[:1])
    return float("nan"), peak_on_cuda(call, device)


def measure_memory(name: str, method: str, batch: int) -> tuple[float, float]:
    """Peak MiB above the loaded model of one call, in a process of its own; that of its tensors."""
    command = [sys.executable, __file__, name, "--memory", method, "--batch", str(batch)]
    # Freed blocks go back at once (glibc), so that the peak is of what is in use.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    process, tensors = map(float, done.stdout.split())
    return process, tensors


def peak_of_one_call(name: str, method: str, batch: int) -> tuple[float, float]:
    """As `measure_memory`, in this process."""
    network = timm.create_model(name).eval()
    images = torch.randn(batch, 3, 224, 224)
    call = prepare(name, method, network, images)
    with torch.inference_mode():
        network(images[:1])  # libraries load what they need
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # forgets the peak so far
    loaded = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    call()
    status = Path("/proc/self/status").read_text()
    peak = next(int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM"))
    return (peak * 1024 - loaded) / 2**20, peak_of_tensors(call)


def peak_of_tensors(call: Callable[[], object]) -> float:
    """Peak MiB that the tensors of a call hold."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    found = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes)) / 2**20


def main() -> None:
    """Prints the table as Markdown and saves it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(LAYERS), help="timm names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="auto", help="such as cpu, cuda or cuda:1")
    parser.add_argument("--precision", choices=("32-true", "bf16"), default="32-true")
    parser.add_argument("--methods", nargs="+", help="of litcam's own, instead of its peers")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed/cam.json"))
    parser.add_argument("--memory", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(*peak_of_one_call(options.models[0], options.memory, options.batch))
        return
    device = find_device(options.device)
    machine = describe_machine(device)
    print(
        f"batch of {options.batch} at 224, {options.precision}, at least {options.rounds} rounds; "
        f"{machine}; {tell_peak(device)}\n"
    )
    own = [f"litcam:{name}" for name in options.methods or ()]
    methods = ("plain", *own) if own else METHODS
    kinds = [] if own else [method for method in METHODS if method != "captum"]
    columns = ["model", "plain (s)", "plain, speed", *(f"{m} (×)" for m in methods[1:])]
    for where in () if own else ("tensors at most", "process"):
        columns += [f"{where}: plain (MiB)", *(f"{kind} (×)" for kind in kinds[1:])]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    results = {}
    for name in options.models:
        times = time_model(name, options.rounds, options.batch, device, options.precision, methods)
        memory = {
            kind: peak_memory(name, kind, options.batch, device, options.precision)
            for kind in kinds
        }
        results[name] = {"time": times, "memory": memory}
        speed = tell_speed(times["flops"], times["seconds"], device)
        row = [name, f"{times['seconds']:.3g}", speed, *(f"{times[m]:.2f}" for m in methods[1:])]
        for which in () if own else (1, 0):
            plain = memory["plain"][which]
            row += [f"{plain:.0f}", *(f"{memory[kind][which] / plain:.2f}" for kind in kinds[1:])]
        print("| " + " | ".join(row) + " |", flush=True)
    options.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    with in_one_line():
        main()
