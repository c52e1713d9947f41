"""Fits a public Lightning project without and with GradCAM, and checks what the callback does.

Photos are taken from the folder that LITCAM_TEST_DATA names, `pets/{train,val}/{cat,dog}/*.jpg`,
else they are drawn. What is written is kept in a temporary folder: look at the pictures.
"""

import base64
import json
import logging
import os
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from litcam.callbacks import GradCAM

WORK = Path(tempfile.mkdtemp(prefix="litcam-projects-"))
warnings.filterwarnings("ignore")
torch.set_num_threads(1)
for package in ("lightning.pytorch", "pytorch_lightning"):
    logging.getLogger(package).setLevel(logging.ERROR)
lines = logging.StreamHandler(os.fdopen(os.dup(1), "w", buffering=1))
lines.setFormatter(logging.Formatter("  says: %(message)s"))
says = logging.getLogger("lightning.pytorch.callbacks.litcam")
says.handlers, says.level, says.propagate = [lines], logging.INFO, False


def photos(count, split="train"):
    """Paths of photos of cats and dogs in turn, and their classes 0 and 1."""
    if root := os.environ.get("LITCAM_TEST_DATA"):
        kinds = [sorted(Path(root, "pets", split, kind).glob("*.jpg")) for kind in ("cat", "dog")]
        return [(kinds[at % 2][at], at % 2) for at in range(count)]
    folder, random = WORK / "drawn" / split, np.random.default_rng(len(split))
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(count):
        image = Image.fromarray(random.integers(0, 90, (150, 200, 3), np.uint8))
        draw, (x, y, *colour) = ImageDraw.Draw(image), random.integers(10, 80, 5).tolist()
        shape = (draw.ellipse, draw.rectangle)[at % 2]
        shape((x, y, x + 90, y + 60), fill=tuple(170 + value for value in colour))
        image.save(folder / f"{at}.jpg")
    return [(folder / f"{at}.jpg", at % 2) for at in range(count)]


def fit(make, folder, arguments, pl, settings):
    """One fit from seed 7; `arguments` makes those of GradCAM of the module, None is without."""
    pl.seed_everything(7, verbose=False)
    module, data = make()
    settings = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False} | settings
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"enable_checkpointing": False, "default_root_dir": folder}
    if (names := settings.pop("class_names", None)) and arguments is not none:
        data["datamodule"].class_names = names
    callbacks = [make_one() for make_one in settings.pop("callbacks", [])]
    callbacks += [] if arguments is None else [GradCAM(**arguments(module))]
    trainer = pl.Trainer(callbacks=callbacks, **settings)
    trainer.fit(module, **data)
    return module, data, trainer


def none(module):
    """The arguments of plain `GradCAM()`."""
    return {}


def everything(module):
    """Bytes of all weights and buffers, also of those that no checkpoint keeps."""
    parts = module.state_dict(), dict(module.named_buffers()), dict(module.named_parameters())
    tensors = [(k, t) for part in parts for k, t in part.items() if isinstance(t, torch.Tensor)]
    return {name: t.detach().contiguous().numpy().tobytes() for name, t in tensors}


def read(folder):
    """The callback's records of one run, and their file."""
    file = next(folder.rglob("images.jsonl"), None)
    return (file, [json.loads(line) for line in file.open()]) if file else (None, [])


def make_map(module, data, record, hand):
    """Grad-CAM in plain autograd: `hand` calls the module's parts and gives the recorded score."""
    kept = []

    def keep(layer, given, output):
        # Frozen layers leave no graph of their own, and an activation in place may follow.
        kept.append(output if output.requires_grad else output.requires_grad_())
        return output.clone()

    hook = module.eval().get_submodule(record["layer"]).register_forward_hook(keep)
    with torch.enable_grad():
        score, photo, facts = hand(module, data, record)
        (gradient,) = torch.autograd.grad(score, kept[-1])
    hook.remove()
    by_hand = F.relu((gradient.mean((2, 3), keepdim=True) * kept[-1]).sum(1))[0]
    return by_hand.detach().numpy(), photo, facts


def compare(record, picture, by_hand, photo):
    """How far the recorded map and the drawn photo are from those made by hand, of 1."""
    levels = np.frombuffer(base64.b64decode(record["map"]), np.uint8).reshape(record["grid"])
    off = np.abs(levels / 255 * record["map_max"] - by_hand).max() / max(by_hand.max(), 1e-12)
    drawn = Image.open(picture).convert("RGB")
    drawn = drawn.crop((0, 0, drawn.width // record["tiles"] - 4, drawn.height)).resize((32, 32))
    wanted = Image.fromarray((photo.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())
    difference = np.asarray(drawn, float) - np.asarray(wanted.resize((32, 32)), float)
    return float(off), float(np.abs(difference).mean()) / 255


def trial(name, make, hand, arguments=None, pl=lightning.pytorch, **settings):
    """Fits without, with plain `GradCAM()`, and with `arguments`; gives what the last one did."""
    before = everything(fit(make, WORK / name / "without", None, pl, settings)[0])
    random, seen = torch.get_rng_state(), SimpleNamespace(as_by_hand=False)
    for title, given in {"GradCAM()": none, "GradCAM(…)": arguments}.items():
        if given is None:
            break
        print(f"{name}: {title}", flush=True)
        folder = WORK / name / ("plain" if given is none else "minimal")
        module, data, trainer = fit(make, folder, given, pl, settings)
        seen.bitwise = before == everything(module) and torch.equal(random, torch.get_rng_state())
        print(f"  bitwise: {seen.bitwise}, {len(before)} tensors and the random numbers")
        file, of_fit = read(folder)
        seen.pictures = len(of_fit)
        print(f"  pictures: {dict(Counter(r['key'] for r in of_fit))}")
        if not of_fit:
            continue
        # Only after the fit the weights are known that a validation's maps are of.
        loaders = data.get("val_dataloaders")
        trainer.validate(module, **({"dataloaders": loaders} if loaders else data), verbose=False)
        worst, facts, records = np.zeros(2), Counter(), read(folder)[1][len(of_fit) :]
        for record in records:
            made, photo, told = make_map(module, data, record, hand)
            worst = np.maximum(worst, compare(record, file.parent / record["file"], made, photo))
            facts.update(f"{fact} {'right' if right else 'WRONG'}" for fact, right in told.items())
        # Eight bits of a map are 0.002 of its maximum; JPEG and resizing cost the photo more.
        seen.as_by_hand = worst[0] < 0.004 and worst[1] < 0.06 and "WRONG" not in str(facts)
        print(
            f"  by hand: {len(records)} maps, at most {worst[0]:.4f} of their maximum off;", end=""
        )
        print(f" photos at most {worst[1]:.3f} off; {dict(facts)}")
        print(f"  layer: {sorted({(r['layer'], *r['grid']) for r in records})}")
        print(f"  captions: {[r['caption'] for r in (records[0], records[-1])]}")
        right = "right" if seen.as_by_hand and seen.bitwise else "WRONG"
        print(f"  verdict: {right}; look at {sorted(folder.rglob('sheet.jpg'))[-1]}")
    return seen
