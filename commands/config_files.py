"""Config files by name: from the checkout, the current folder, or the installed package."""

from collections.abc import Sequence
from pathlib import Path

from litcam.commands import errors

CONFIGS = Path(__file__).parent.parent / "configs"
BASE = CONFIGS / "base.yaml"


def find_configs(args: Sequence[str]) -> list[str]:
    """Arguments with the names of packaged YAML files made into their paths.

    Raises:
        FileNotFoundError: a YAML file is neither here nor in the package.
    """
    return [_find(arg) for arg in args]


def packaged_configs() -> list[str]:
    """The names of the files that come with litcam, such as `trainer/ddp.yaml`."""
    return [path.relative_to(CONFIGS).as_posix() for path in sorted(CONFIGS.rglob("*.yaml"))]


def name_of_run(args: Sequence[str]) -> str:
    """The name of the last `--config` file, which names the experiment."""
    names = [
        Path(value.partition("=")[2] if "=" in value else after).stem
        for value, after in zip(args, [*args[1:], ""], strict=True)
        if value.split("=")[0] in ("--config", "-c")
    ]
    return names[-1] if names else "fit"


def _find(arg: str) -> str:
    option, equals, value = arg.rpartition("=")
    if not value.endswith((".yaml", ".yml")) or Path(value).exists():
        return arg
    packaged = CONFIGS / value.removeprefix("configs/")
    if not packaged.exists():
        wanted = value.removeprefix("configs/")
        raise FileNotFoundError(errors.unknown("config file", wanted, packaged_configs()))
    return f"{option}{equals}{packaged}"
