"""The words after `litcam explain`: options, photos, and names that tell things apart."""

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from litcam.commands.cli import errors, yaml_text
from litcam.commands.cli.config_files import find_configs
from litcam.commands.cli.devices import find_device
from litcam.commands.cli.options import OptionParser
from litcam.commands.explaining.photos import find_photos
from litcam.explain.methods.formulas import GUIDED, METHODS, SLOW_METHODS, VIT_METHODS

Key = TypeVar("Key")


def parse(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, with photos as paths, and a line for each photo or method that there is not.

    Raises:
        ValueError: If an option makes no sense, or nothing is left to do.
    """
    parser = OptionParser("explain")
    parser.add_argument("photos", nargs="*", default=[])
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--classes", nargs="+", default=["predicted"])
    parser.add_argument("--methods", nargs="+", default=["gradcam"])
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--target_layer", nargs="+", default=[])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", default="explained")
    parser.add_argument("--config")
    words = find_configs(list(args))
    config = parser.parse_args(words).config
    if config:
        parser.set_defaults(**_read(Path(config), parser))
    options = parser.parse_args(words)
    if not options.photos or not options.models:
        missing = "a photo" if not options.photos else "--models"
        raise ValueError(f"missing: {missing}; see `litcam explain --help`")
    options.device = find_device(str(options.device))
    for name in ("photos", "models", "classes", "methods"):
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))
    options.photos, no_photos = find_photos(options.photos)
    options.methods, no_methods = _find_methods(options.methods)
    for found, problems in ((options.photos, no_photos), (options.methods, no_methods)):
        if not found:
            raise ValueError("; ".join(problems))
    _check_writable(Path(options.out))
    return options, no_photos + no_methods


def tell_apart(names: Mapping[Key, Sequence[str]]) -> dict[Key, str]:
    """The first of each one's names that no other has.

    >>> tell_apart({1: ["last", "a/last"], 2: ["last", "b/last"], 3: ["best", "b/best"]})
    {1: 'a/last', 2: 'b/last', 3: 'best'}
    """
    level = dict.fromkeys(names, 0)
    while True:
        now = {key: names[key][at] for key, at in level.items()}
        uses = Counter(now.values())
        alike = [key for key in names if uses[now[key]] > 1 and level[key] + 1 < len(names[key])]
        if not alike:
            return now
        for key in alike:
            level[key] += 1


def name_photos(photos: Sequence[Path]) -> dict[Path, str]:
    """Each photo's file name, after the folders that tell it from one of the same name."""
    return tell_apart(
        {
            photo: ["/".join(photo.parts[-depth:]) for depth in range(1, len(photo.parts) + 1)]
            for photo in photos
        }
    )


def _read(file: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    if not file.exists():
        raise ValueError(f"config {file} does not exist")
    found = yaml_text.load_file(file) or {}
    if not isinstance(found, dict):
        raise ValueError(f"config {file} must hold options, such as `models: [resnet34]`")
    known = [action.dest for action in parser._actions]
    for name in found:
        if name not in known:
            raise ValueError(f"{file}: {errors.unknown('option', name, known)}")
    return {name: _as_word(file, name, found[name], parser.get_default(name)) for name in found}


def _as_word(file: Path, name: str, value: Any, default: Any) -> Any:
    """A value of YAML as the command line would give it: class numbers are words there."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"config {file}: {name} must be true or false, got {value!r}")
        return value
    words = value if isinstance(value, list) and isinstance(default, list) else [value]
    for word in words:
        if not isinstance(word, str | int | float):
            raise ValueError(f"config {file}: {name} must be a word, got {word!r}")
    return [str(word) for word in words] if isinstance(default, list) else str(value)


def _find_methods(names: Sequence[str]) -> tuple[list[str], list[str]]:
    known = [*METHODS, *VIT_METHODS, *SLOW_METHODS, GUIDED]
    problems = [errors.unknown("method", name, known) for name in names if name not in known]
    return [name for name in names if name in known], problems


def _check_writable(out: Path) -> None:
    """Said before the work, which may take long, and without leaving an empty folder."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"--out {out}: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"--out {out}: {there} cannot be written to; choose another folder")
