"""A model card: what a run can tell of its network, and nothing else.

Licence, data and purpose are left to who publishes it; a number, name or picture that the run has
not is left out.
"""

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from litcam.commands.exporting.source import Source
from litcam.files import write_whole
from litcam.report.curves import read_metrics
from litcam.report.pictures import read_lines

__all__ = ["write_card"]

PICTURES = "pictures"
MAX_PICTURES = 8
# More classes are folded away, and a thousand names are in config.json.
MAX_LISTED, MAX_NAMED = 12, 300
# As they are called in papers; others keep the run's names.
TITLES = {
    "val/acc1": "top-1 accuracy",
    "val/acc5": "top-5 accuracy",
    "val/loss": "loss",
    "val/ece": "calibration error (15 bins)",
    "val/psnr": "PSNR of the hidden pixels (dB)",
    "val/explained_variance": "explained variance of the hidden pixels",
    "val/knn_acc1": "top-1 accuracy of the nearest neighbours",
}
USE = """\
```python
import timm
import torch
from PIL import Image

network = timm.create_model({name}, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
with torch.inference_mode():
    {answer}
```

`hf-hub:OWNER/NAME` instead of `local-dir:…` once it is there: `hf upload OWNER/NAME {folder}`.
Where it looks: `litcam explain photo.jpg --models {folder}{methods}`."""
CLASSES = """\
logits = network(transform(Image.open("photo.jpg").convert("RGB"))[None])
probabilities = logits.softmax(-1)"""
FEATURES = 'features = network(transform(Image.open("photo.jpg").convert("RGB"))[None])'


def write_card(source: Source, folder: Path, out: Path, *, pictures: bool, onnx: str = "") -> None:
    """Write README.md, with Hugging Face's front matter, and the run's pictures beside it.

    Args:
        source: What is exported.
        folder: To write to.
        out: What the folder will be called.
        pictures: Whether the run's own, which show its photos, are copied.
        onnx: What was found of the ONNX file, if there is one.
    """
    shown = _copy_pictures(source, folder) if pictures else []
    parts = [
        _front_matter(source),
        f"# {_architecture(source)}, {_escape(source.name)}",
        _summary(source),
        "## Use",
        _usage(source, out),
    ]
    if onnx:
        parts += ["## ONNX", onnx]
    if numbers := _numbers(source):
        parts += ["## Measured", *numbers]
    if shown:
        title = "Where it looks" if source.model.has_classes else "What it guessed in pretraining"
        parts += [f"## {title}", *shown]
    if names := list(source.model.classes):
        parts += ["## Classes", _class_table(names)]
    if made := _how_it_was_made(source.run):
        parts += ["## How it was made", *made]
    text = "\n\n".join(parts) + "\n"
    # Names of folders may be no text at all.
    write_whole(folder / "README.md", text.encode(errors="backslashreplace").decode())


def _front_matter(source: Source) -> str:
    task = "image-classification" if source.model.has_classes else "image-feature-extraction"
    facts = {"library_name": "timm", "pipeline_tag": task, "tags": ["timm", task, "litcam"]}
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---"


def _summary(source: Source) -> str:
    model, network = source.model, source.model.network
    size = sum(weight.numel() for weight in network.parameters()) / 1e6
    height, width = model.image_size
    what = f"{model.network.num_classes} classes" if model.has_classes else "an encoder, no head"
    mean, std = (", ".join(f"{x:g}" for x in of) for of in (model.config.mean, model.config.std))
    told = f" ({source.told})" if source.told else ""
    return (
        f"timm's `{_architecture(source)}`, {size:.2f} M parameters, {what}, "
        f"trained with litcam{told}.\n\n"
        f"Images: {height} × {width} pixels, {model.config.interpolation}, centre crop of "
        f"{model.config.crop_pct:g}; mean {mean}; std {std} of pixels in [0, 1]."
    )


def _architecture(source: Source) -> str:
    network: Any = source.model.network
    return str(network.pretrained_cfg["architecture"])


def _usage(source: Source, out: Path) -> str:
    answer = CLASSES if source.model.has_classes else FEATURES
    if source.model.classes:
        answer += '\nnames = network.pretrained_cfg["label_names"]'
    methods = "" if source.model.has_classes else " --methods eigencam"
    indented = answer.replace("\n", "\n    ")
    name = json.dumps(f"local-dir:{out.name}", ensure_ascii=False)
    return USE.format(name=name, folder=shlex.quote(out.name), answer=indented, methods=methods)


def _numbers(source: Source) -> list[str]:
    """Of the validation right before the checkpoint."""
    metrics = read_metrics(source.run)
    found = {
        name: value
        for name, points in metrics.items()
        for step, _, value in points
        if step == source.step and name.startswith("val/")
    }
    count = found.get("val/images_unique")
    rows = [
        f"| {TITLES.get(name, _escape(name.removeprefix('val/')))} | {value:.4g} |"
        for name, value in sorted(found.items(), key=lambda item: (item[0] not in TITLES, item[0]))
        if not name.startswith("val/images_")
    ]
    if not rows:
        return []
    images = f"{count:,.0f} validation images" if count else "validation images"
    return [f"On the run's {images}:", "\n".join(["| | |", "|---|---|", *rows])]


def _copy_pictures(source: Source, folder: Path) -> list[str]:
    """The run's pictures of the same step, in a table."""
    kind, name = (
        ("map", "gradcam") if source.model.has_classes else ("mask_share", "reconstructions")
    )
    lines = [
        line
        for line in read_lines(source.run / name / "images.jsonl")
        if kind in line and line.get("step") == source.step
    ]
    cells: list[str] = []
    first = {line.get("index"): line for line in reversed(lines)}  # what is predicted comes first
    for line in reversed(first.values()):
        picture = source.run / name / str(line.get("file"))
        if len(cells) < MAX_PICTURES and picture.is_file():
            (folder / PICTURES).mkdir(exist_ok=True)
            target = Path(PICTURES, f"{len(cells)}{picture.suffix}")
            shutil.copyfile(picture, folder / target)
            cells.append(f"![]({target.as_posix()})<br>{_caption(line)}")
    if not cells:
        return []
    cells += [""] * (len(cells) % 2)
    rows = [f"| {left} | {right} |" for left, right in zip(cells[::2], cells[1::2], strict=True)]
    return ["\n".join(["| | |", "|---|---|", *rows]), _method(lines[0])]


def _caption(line: dict[str, Any]) -> str:
    if "mask_share" in line:
        return f"{line['mask_share']:.0%} hidden"
    true = line.get("label_name")
    known = f", true {_escape(str(true))}" if true is not None else ""
    trouble = f"; {_escape(str(line['problem']))}" if line.get("problem") else ""
    named, sure = _escape(str(line.get("predicted_name"))), line.get("confidence") or 0
    asked = str(line.get("class_name"))
    about = "" if asked == line.get("predicted_name") else f"; map of {_escape(asked)}"
    return f"{named} {sure:.2f}{known}{about}{trouble}"


def _method(line: dict[str, Any]) -> str:
    if "map" not in line:
        return "The image with cells hidden, the cells guessed, both, and the image."
    return f"Each image, and {line.get('method')} at `{line.get('layer')}` for its class."


def _class_table(names: Sequence[str]) -> str:
    if len(names) > MAX_NAMED:
        return f"{len(names)} names are in `config.json`, as `label_names`."
    rows = "\n".join(f"{number}. {_escape(name)}" for number, name in enumerate(names))
    if len(names) <= MAX_LISTED:
        return rows
    return f"<details><summary>{len(names)} names</summary>\n\n{rows}\n\n</details>"


def _how_it_was_made(run: Path) -> list[str]:
    parts = []
    for file, title in (("config.yaml", "Configuration"), ("versions.yaml", "Versions")):
        try:
            found = yaml.safe_load((run / file).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        text = yaml.safe_dump(_without_folders(found), sort_keys=False, allow_unicode=True)
        # Longer than any that the text itself may hold.
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        parts.append(
            f"<details><summary>{title}</summary>\n\n{fence}yaml\n{text}{fence}\n\n</details>"
        )
    return parts


def _without_folders(tree: Any) -> Any:
    """Without the folders of one machine, which tell who worked on it and help nobody else."""
    if isinstance(tree, dict):
        return {key: _without_folders(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_folders(value) for value in tree]
    if isinstance(tree, str) and tree.startswith(("/", "~")):
        return f"…/{Path(tree).name}"
    return tree


def _escape(text: str) -> str:
    """A name as it is, whatever it means in Markdown or HTML."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|#~!$])", r"\\\1", line)
