"""Config files by name: from the checkout, the current folder, or the installed package."""

from collections.abc import Sequence
from pathlib import Path

from litcam.commands.cli import errors, yaml_text

CONFIGS = Path(__file__).parents[2] / "configs"
BASE = CONFIGS / "base.yaml"
SUFFIXES = (".yaml", ".yml")
CONFIG = ("--config", "-c")


def find_configs(args: Sequence[str]) -> list[str]:
    """Arguments with the names of packaged YAML files made into their paths.

    Raises:
        FileNotFoundError: a YAML file is neither here nor in the package.
        ValueError: `yaml_text.load_file` cannot read it, or it holds no options.
    """
    return [_find(before, word) for before, word in zip(["", *args], args, strict=False)]


def packaged_configs() -> list[str]:
    """The names of the files that come with litcam, such as `trainer/ddp.yaml`."""
    return [path.relative_to(CONFIGS).as_posix() for path in sorted(CONFIGS.rglob("*.yaml"))]


def name_of_run(args: Sequence[str]) -> str:
    """The name of the last `--config` file, which names the experiment."""
    names = [
        Path(value.partition("=")[2] if "=" in value else after).stem
        for value, after in zip(args, [*args[1:], ""], strict=True)
        if value.split("=")[0] in CONFIG
    ]
    return names[-1] if names else "fit"


def _find(before: str, word: str) -> str:
    """A word as it is to be read, after the word before it."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    is_config = option in CONFIG if equals else before in CONFIG and not option
    if is_config and not value:
        raise ValueError("--config is empty; name a YAML file")
    if not value.endswith(SUFFIXES) and not is_config:
        return word
    path = Path(value)
    if not path.exists() and value.endswith(SUFFIXES):
        wanted = value.removeprefix("configs/")
        path = CONFIGS / wanted
        if not path.exists():
            raise FileNotFoundError(errors.unknown("config file", wanted, packaged_configs()))
    if path.exists():
        if not isinstance(yaml_text.load_file(path), dict) and is_config:
            raise ValueError(
                f"config {path} must hold options, such as `trainer: {{max_epochs: 3}}`"
            )
        return f"{option}{equals}{path}"
    return word  # YAML itself, or a mistake that the parser names
