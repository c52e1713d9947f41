"""YAML of a user, held against what a config may be before anything is made of it."""

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

_construct = get_loader("yaml")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The longest config that comes with litcam has 928 characters, the fullest 41 values.
MAX_BYTES, MAX_VALUES, MAX_DEPTH = 1_000_000, 10_000, 50


class YamlError(yaml.YAMLError, ValueError):
    """What is wrong with a text of YAML, in one line."""


def read_text(file: Path) -> str:
    """The text of a config file.

    Raises:
        ValueError: If it is no ordinary file, too large, or no text.
    """
    if not file.is_file():
        raise ValueError(f"config {file} is no ordinary file; give a YAML file")
    try:
        if (size := file.stat().st_size) > MAX_BYTES:
            raise ValueError(f"config {file} has {size:,} bytes, too many for a config")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise ValueError(f"config {file} is not text in UTF-8 ({reason}); check the path") from None
    except OSError as error:
        raise ValueError(f"config {file} cannot be read ({error.strerror})") from None


def load_file(file: Path) -> Any:
    """What a config file holds.

    Raises:
        ValueError: If `read_text` or `load` refuses it.
    """
    text = read_text(file)
    try:
        return load(text)
    except YamlError as error:
        raise ValueError(f"config {file}: {error}") from None


def load(text: str) -> Any:
    """What YAML says, as jsonargparse reads it: `1e-3` is a number, and a date is a word.

    Raises:
        YamlError: If it is broken, endless, or says a thing twice; the message tells the line.

    >>> load("model: {lr: 1, lr: 2}")
    Traceback (most recent call last):
    litcam.commands.cli.yaml_text.YamlError: line 1: 'lr' stands twice; keep one
    """
    try:
        root = yaml.compose(text, Loader=LOADER)
        if root is not None:
            _count(root, set(), {})
        return _construct(text)
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        raise YamlError(f"{_line(mark)}{problem}; it is not YAML") from None
    except Exception as error:  # `!!int x` and the like come as anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise YamlError(f"a value cannot be read ({reason}); it is not YAML") from None


def _count(node: yaml.Node, above: set[int], known: dict[int, int]) -> int:
    """How many values a node holds, with every alias followed: each node is visited once."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        return known[id(node)]
    line = _line(node.start_mark)
    if id(node) in above:
        raise YamlError(f"{line}an anchor that contains itself; write the values out")
    if len(above) == MAX_DEPTH:
        raise YamlError(f"{line}nested more than {MAX_DEPTH} deep")
    if isinstance(node, yaml.MappingNode):
        _check_keys([key for key, _ in node.value], options=not above)
        values = [value for _, value in node.value]
    else:
        values = node.value
    known[id(node)] = 1 + sum(_count(value, above | {id(node)}, known) for value in values)
    if known[id(node)] > MAX_VALUES:
        raise YamlError(f"{line}more than {MAX_VALUES:,} values; no config has as many")
    return known[id(node)]


def _check_keys(keys: list[yaml.Node], *, options: bool) -> None:
    """A name stands once, and one of an option is a word: `on` and `1` are none in YAML."""
    seen: set[str] = set()
    for key in keys:
        line = _line(key.start_mark)
        word = isinstance(key, yaml.ScalarNode) and key.tag.endswith((":str", ":merge"))
        if not isinstance(key, yaml.ScalarNode) or (options and not word):
            raise YamlError(f"{line}a name has to be a word; put quotes around it")
        if key.value in seen:
            raise YamlError(f"{line}{key.value!r} stands twice; keep one")
        seen.add(key.value)


def _line(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}: " if mark else ""
