"""What a training step of a masked autoencoder costs: litcam beside lightly, ViT-S/16 at 224.

    python benchmarks/speed/mae.py                  # seconds and ratios to lightly, as a table
    python benchmarks/speed/mae.py --precision bf16 --rounds 9
    python benchmarks/speed/mae.py --device cuda --precision bf16 --batch 256

lightly's MAE is put together from its timm modules as in its examples, with the decoder of the
paper (512 wide, 8 blocks, 16 heads) and their plain AdamW. Before anything is timed, its weights
are copied into litcam's model of the same decoder: loss and numbers of parameters have to be the
same. All take turns in one process, with the same images and masks; ratios are medians of the
rounds' own. It needs `pip install lightly`.
"""

import argparse
import logging
from statistics import median
from typing import Any

import lightly
import lightning.pytorch as pl
import timm
import torch
from chips import count_flops, tell_peak, tell_speed
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from timing import Stopwatch, describe_machine, measure
from torch import Tensor, nn

from litcam.commands.cli.devices import find_device
from litcam.commands.cli.errors import in_one_line
from litcam.lightning_modules import MAE
from litcam.lightning_modules.backbones import prefer_plain_attention
from litcam.lightning_modules.optim import create_optimizer, parameter_groups

BACKBONE, MASK_RATIO, DIM, DEPTH, LR = "vit_small_patch16_224", 0.75, 512, 8, 1.5e-4
PATCH_SIZE, NUM_CELLS = 16, 14 * 14
PHASES = ("forward", "backward", "optimiser", "total")
PRECISIONS: dict[str, Any] = {"32-true": "32-true", "bf16": "bf16-mixed"}  # Lightning's names


class LightlyMAE(nn.Module):
    """lightly's encoder and decoder for timm, joined."""

    def __init__(self) -> None:
        super().__init__()
        vit = timm.create_model(BACKBONE, num_classes=0)
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.embed = nn.Linear(vit.embed_dim, DIM)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=NUM_CELLS, embed_dim=DIM, depth=DEPTH, num_heads=16
        )
        self.head = nn.Linear(DIM, PATCH_SIZE**2 * 3)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Map images to the loss; ``noise`` (batch, NUM_CELLS) makes the mask as in litcam."""
        order = nn.functional.pad(noise, (1, 0), value=-1.0).argsort(dim=1)  # class token first
        keep, hidden = order.tensor_split([1 + int(NUM_CELLS * (1 - MASK_RATIO))], dim=1)
        tokens = self.embed(self.backbone.encode(images, idx_keep=keep))
        tokens = utils.set_at_index(tokens.new_zeros(*order.shape, DIM), keep, tokens)
        predicted = self.head(utils.get_at_index(self.decoder(tokens, idx_mask=hidden), hidden))
        target = utils.get_at_index(utils.patchify(images, PATCH_SIZE), hidden - 1)
        return nn.functional.mse_loss(predicted, target)


def check_same_work(images: Tensor) -> str:
    """Give lightly's weights to litcam, compare in float32, and say what was found.

    Raises:
        RuntimeError: if they differ, so that their times could not be compared.
    """
    theirs, ours = LightlyMAE().to(images.device), litcam_mae(images, DIM, DEPTH)
    decoder = {
        **{key: value for key, value in theirs.decoder.state_dict().items() if key != "pos_embed"},
        **{f"embed.{key}": value for key, value in theirs.embed.state_dict().items()},
        **{f"head.{key}": value for key, value in theirs.head.state_dict().items()},
        "mask_token": theirs.decoder.mask_token.flatten(),
    }
    ours.encoder.load_state_dict(theirs.backbone.vit.state_dict())
    ours.decoder.load_state_dict(decoder)
    noise = torch.rand(len(images), NUM_CELLS, device=images.device)
    with torch.no_grad():
        losses = [model(images, noise).item() for model in (theirs, ours)]
    encoders = count(theirs.backbone.vit), count(ours.encoder)
    decoders = count(theirs.embed, theirs.decoder, theirs.head), count(ours.decoder)
    found = (
        f"parameters trained in the encoder {encoders}, in the decoder {decoders}; "
        f"loss with the same weights and mask ({losses[0]:.7f}, {losses[1]:.7f})"
    )
    if len({*encoders}) + len({*decoders}) > 2 or abs(losses[0] - losses[1]) > 1e-5:
        raise RuntimeError(f"lightly and litcam do not do the same work: {found}")
    return found


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)


def litcam_mae(images: Tensor, dim: int | None = None, depth: int | None = None) -> MAE:
    return MAE(BACKBONE, MASK_RATIO, decoder_dim=dim, decoder_depth=depth).to(images.device)


def prepare(images: Tensor, precision: str) -> dict[str, Any]:
    """Make the models, each as it is at the start of its training."""
    trainer = pl.Trainer(
        accelerator=images.device.type,
        devices=1 if images.device.type == "cpu" else [images.device.index or 0],
        precision=PRECISIONS[precision],
        logger=False,
        enable_checkpointing=False,
    )
    same, own, other = (litcam_mae(images, *size) for size in ((DIM, DEPTH), (), (DIM, DEPTH)))
    for mae in (same, own, other):
        mae.trainer = trainer
        prefer_plain_attention(mae)
    size = f"{DIM}×{DEPTH}"
    models = {
        f"lightly, {size}": LightlyMAE().to(images.device),
        f"litcam, {size}": same,
        f"litcam, its own {own.decoder.dim}×{own.decoder.depth}": own,
    }
    if not any(getattr(layer, "fused_attn", False) for layer in same.modules()):
        # What of the difference is torch's fused attention, slow here: each as the other has it.
        models[f"lightly, {size}, plain attention"] = LightlyMAE().to(images.device)
        models[f"litcam, {size}, fused attention"] = other
        for model, fused in zip(list(models.values())[3:], (False, True), strict=True):
            for layer in model.modules():
                if hasattr(layer, "fused_attn"):
                    layer.fused_attn = fused
    return models


def create(model: nn.Module) -> torch.optim.Optimizer:
    if isinstance(model, MAE):
        return create_optimizer(parameter_groups(model, LR), options={"betas": (0.9, 0.95)})
    return torch.optim.AdamW(model.parameters(), lr=LR)


def step(
    model: Any, optimizer: torch.optim.Optimizer, images: Tensor, noise: Tensor, precision: str
) -> dict[str, float]:
    """Train one step; return the seconds of each phase."""
    watch = Stopwatch(images.device)
    watch.mark()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = model(images, noise)
    watch.mark()
    loss.backward()
    watch.mark()
    if isinstance(model, MAE):  # it looks for gradients that are not finite before every step
        model.on_before_optimizer_step(optimizer)
    optimizer.step()
    optimizer.zero_grad()
    watch.mark()
    spans = watch.spans()
    return dict(zip(PHASES, [*spans, sum(spans)], strict=True))


def count_step(model: Any, images: Tensor, noise: Tensor) -> int:
    """Operations of forward and backward for these images, counted on one of them."""
    flops = count_flops(lambda: model(images[:1], noise[:1]).backward())
    model.zero_grad()
    return len(images) * flops


def measure_matmul(device: torch.device, size: int = 2048) -> float:
    """GFLOP/s of a float32 matrix product at this moment, the median of nine."""
    matrix = torch.randn(size, size, device=device)
    seconds = [measure(lambda: matrix @ matrix, device) for _ in range(10)]
    return 2e-9 * size**3 / median(seconds[1:])


def report(
    rounds: dict[str, list[dict[str, float]]], flops: dict[str, int], device: torch.device
) -> None:
    """Print a row for each model: median seconds of each phase, ratios to the first model."""
    print("| model | " + " | ".join(f"{phase} (s)" for phase in PHASES), end="")
    print(" | speed | forward and backward (×) | step (×) |\n|" + "---|" * (len(PHASES) + 4))
    first = next(iter(rounds.values()))
    for name, steps in rounds.items():
        cells = [f"{median(each[phase] for each in steps):.3g}" for phase in PHASES]
        total = median(each["total"] for each in steps)
        cells.append(tell_speed(flops[name], total, device))
        for phases in (PHASES[:2], PHASES[:3]):
            pairs = zip(steps, first, strict=True)
            ratios = (sum(a[p] for p in phases) / sum(b[p] for p in phases) for a, b in pairs)
            cells.append(f"{median(ratios):.2f}")
        print("| " + " | ".join([name, *cells]) + " |")


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto", help="such as cpu, cuda or cuda:1")
    parser.add_argument("--compile", action="store_true", help="all models by torch.compile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = find_device(options.device)
    images = torch.randn(options.batch, 3, 224, 224, device=device)
    print(f"Checked, lightly and litcam {DIM}×{DEPTH}: {check_same_work(images[:2])}.\n")

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    models = prepare(images, options.precision)
    noise = torch.rand(options.batch, NUM_CELLS, device=device)
    flops = {name: count_step(model, images, noise) for name, model in models.items()}
    optimizers = {name: create(model) for name, model in models.items()}
    if options.compile:
        for model in models.values():
            model.compile()
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    speeds = [measure_matmul(device)]
    for number in range(options.rounds + 1):
        noise = torch.rand(options.batch, NUM_CELLS, device=device)
        for name, model in models.items():
            seconds = step(model, optimizers[name], images, noise, options.precision)
            if number:  # the first one is a warm-up
                rounds[name].append(seconds)
    speeds.append(measure_matmul(device))

    print(
        f"{BACKBONE}, batch of {options.batch}, {options.precision}, {options.rounds} rounds"
        f"{', compiled' if options.compile else ''}; "
        f"{describe_machine(device)}, {options.threads} threads; {tell_peak(device)}; "
        f"timm {timm.__version__}, lightly {lightly.__version__}; float32 matrix product "
        f"{speeds[0]:.0f} GFLOP/s before, {speeds[1]:.0f} after. "
        "lightly has its own default attention where none is named.\n"
    )
    report(rounds, flops, device)


if __name__ == "__main__":
    with in_one_line():
        main()
