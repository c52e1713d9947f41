"""Photos that a command is given: found, and made what a network takes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torchvision.transforms import v2

from litcam.datamodules.files import read_whole
from litcam.datamodules.pixels.data_config import DataConfig
from litcam.datamodules.pixels.decode import decode
from litcam.datamodules.pixels.transforms import eval_transform
from litcam.datamodules.sources.layouts import is_image

Tick = Callable[[int, str], None]


def find_photos(names: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that are named, those in folders that are, and a line for each that is not there.

    A photo that is named twice is there once.
    """
    photos: list[Path] = []
    problems = []
    for path in map(Path, names):
        if path.is_dir():
            found = sorted(at for at in path.iterdir() if is_image(at.name))
            problems += [] if found else [f"folder {path} holds no images"]
        elif path.exists():
            found = [path]
        else:
            found = []
            problems.append(f"photo {path} does not exist; check the path")
        photos += found
    return list(dict.fromkeys(photos)), problems


def read_photo(photo: Path, image_size: tuple[int, int], config: DataConfig) -> Tensor:
    """Reads a photo as a network takes it, but for mean and std.

    Args:
        photo: The file.
        image_size: Height and width in pixels.
        config: Crop and interpolation of the network's images.

    Returns:
        ``(3, height, width)``, uint8.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no image.
    """
    height, width = image_size
    if height == width:
        transform = eval_transform(height, config)
    else:
        transform = v2.Resize((height, width), antialias=True)
    image: Tensor = transform(decode(read_whole(photo), str(photo)))
    return image


@contextmanager
def progress_bar(total: int) -> Iterator[Tick]:
    """A bar on the terminal; it is told how much is done, and what comes next."""
    console = Console()
    columns = BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False)
    # A log file would get every state of the bar.
    silent = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as progress:
        task = progress.add_task("", total=total)

        def tick(done: int, what: str) -> None:
            progress.update(task, completed=done, description=what)

        yield tick
