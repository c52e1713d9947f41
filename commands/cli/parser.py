"""The parser of `litcam fit` and its like: what it cannot read, it says in one line."""

import contextlib
import inspect
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import set_loader
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from litcam.commands.cli import errors, yaml_text
from litcam.commands.cli.ranges import check_ranges
from litcam.lightning_modules.weights.size import check_size

# What jsonargparse says about the types it tried, beside the one that matters.
NOISE = re.compile(
    r"Does not validate against|Subtypes: |Errors:|- Expected a <class 'NoneType'>|Given value|"
    r"- Expected a path but|class_path 'lightning.Callback'|"
    r"Subclass types expect one of|- a class path \(|- a dict with|"
    r"Expected an instantiatable class|Option '\w+' is not accepted"
)
KINDS = {"model": LightningModule, "data": LightningDataModule, "trainer.callbacks": Callback}
KINDS["trainer.logger"] = Logger
# Also for YAML on the command line, and for files that a config names.
set_loader("yaml", yaml_text.load, (yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """LightningCLI's parser with short messages."""

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        """Reads the words of the command line, and ends the program where they make no sense."""
        for word in args or ():
            check_word(word)
        self._words = [str(word) for word in args or ()]
        try:
            config = super().parse_args(args, *others, **kwargs)
            check_ranges(config)
            _check_weights(config)
            return config
        except (BrokenPipeError, errors.OptionError):
            raise
        except Exception as error:  # odd words make jsonargparse raise anything
            self.error(f"the options cannot be read ({type(error).__name__}: {error})", error)

    def parse_object(self, obj: Any, namespace: Any = None, **kwargs: Any) -> Any:
        """Takes over a checkpoint's options, but for those that the command line gives.

        Nor its choice of a class: else a file of weights could have any module imported.
        """
        if not namespace or not (command := namespace.get("subcommand")):
            return super().parse_object(obj, namespace, **kwargs)
        stored, asked = obj[command]["model"], namespace[command].model
        if stored.get("class_path") not in (None, asked.class_path):
            raise errors.OptionError(
                f"--ckpt_path is of {stored['class_path']!r}, and --model is {asked.class_path}; "
                "give one of those"
            )
        options = stored.get("dict_kwargs", stored)
        for word in self._words:
            if given := re.match(r"--model\.(?:init_args\.)?(\w+)", word):
                options.pop(given[1], None)
        return super().parse_object(obj, namespace, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Says it in short.

        Raises:
            OptionError: the line, for `errors.in_one_line`; jsonargparse's own attempts expect
                another error.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise errors.OptionError(shorten(message, parser._option_string_actions)) from None


def check_word(word: str) -> None:
    """Refuses what jsonargparse stumbles over or waits for: it reads files for many an option.

    Raises:
        OptionError: the word is no text, or names a pipe or a device.
    """
    if not word.isascii() and word != word.encode(errors="ignore").decode():
        raise errors.OptionError(
            f"{word!r} is no text in UTF-8, as the config of a run has to be; rename the file, or "
            "make a link to it"
        )
    path = Path(word.partition("=")[2] if word.startswith("-") else word)
    with contextlib.suppress(OSError):  # a name that is too long
        if path.exists() and not path.is_file() and not path.is_dir():
            raise errors.OptionError(f"{path} is a pipe or a device; give a file")


def shorten(message: str, options: Iterable[str]) -> str:
    """The line that matters of jsonargparse's message, with close matches.

    >>> shorten("unrecognized arguments: --ckptpath 3", ["--ckpt_path", "--trainer"])
    "option '--ckptpath' does not exist; did you mean --ckpt_path?"
    """
    if match := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
        return errors.unknown("option", match[1], options)
    if match := re.match(r"unrecognized arguments: ?(.*)", message, re.DOTALL):
        return f"{match[1]!r} is no option; options begin with --"
    if match := re.match(r"Subcommand '\w+' does not accept option '(.+)'", message):
        return errors.unknown("option", f"--{match[1]}", options)
    key = _find(r'Parser key "([\w.]+)"', message)
    owner = _find(r"given class_path '([\w.]+)'", message)
    option = _find(r"Option '(\w+)' is not accepted", message)
    if option and option not in _options(owner):
        kind = f"--{key}: {owner.rpartition('.')[2]}'s option"
        return errors.unknown(kind, option, _options(owner))
    if name := _find(r"Expected a dot import path string: (\w+)", message):
        return errors.unknown(f"class --{key}" if key else "class", name, _classes(key))
    if names := _find(r"arguments are required: (.+)", message):
        first = f"--{key}." if key else "--"
        wanted = [first + name.strip().rpartition(".")[2] for name in names.split(",")]
        return f"missing: {', '.join(wanted)}; `litcam fit --help` shows how a run is described"
    return _rest(message)


def _rest(message: str) -> str:
    """What remains of a message about a value: the place, what was expected, the value."""
    keys = re.findall(r'(?:Parser key|given class_path) ["\']([\w.]+)["\']', message)
    value = _find(r"(?:Got value|Given value): (.+)", message)
    lines = (line.strip(" -") for line in message.splitlines() if not NOISE.search(line))
    lines = (re.sub(r'^Parser key "[\w.]+": *', "", line) for line in lines)
    kept = [line for line in lines if not line.startswith("Problem with given")]
    said = "; ".join(dict.fromkeys(line.partition(". Got value")[0] for line in kept if line))
    said = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", said).replace("Expected a ", "expected ")
    said = re.sub(r"typing\.Literal\[(.+?)\]", lambda found: found[1].replace(", ", " or "), said)
    said = said.replace("; expected ", " or ")  # kinds that it may be of
    given = "" if value is None or said.endswith(value) else f", got {value}"
    # The class says what the option's name already says.
    place = ".".join(
        key for key in dict.fromkeys(keys) if not key.startswith(("litcam.", "lightning."))
    )
    return f"--{place}: {said}{given}" if place else f"{said}{given}"


def _find(pattern: str, message: str) -> str:
    match = re.search(pattern, message)
    return match[1] if match else ""


def _options(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(import_module(module), name)).parameters)


def _classes(key: str) -> list[str]:
    found, todo = set(), [KINDS.get(key.removesuffix("+"), LightningModule)]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if kind.__module__.startswith("litcam.") or key.startswith("trainer"):
            found.add(kind.__name__)
    return sorted(found)


def _check_weights(config: Any) -> None:
    """Refuses weights that unpack into more than they are, before anything starts."""
    options = config.get(str(config.get("subcommand"))) or {}
    model = options.get("model") or {}
    weights = (model.get("init_args") or {}).get("weights")
    for place, file in (("--ckpt_path", options.get("ckpt_path")), ("--model.weights", weights)):
        if isinstance(file, str):
            try:
                check_size(Path(file), place)
            except ValueError as error:
                raise errors.OptionError(str(error)) from None
