"""The maps of the validation images that are shown: chosen, made, drawn and logged."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from litcam.callbacks.explained.maps import Explained, KeptMaps, Names, bring_maps, find_views
from litcam.callbacks.explained.recorder import Recorded
from litcam.callbacks.explained.surest import Surest
from litcam.callbacks.explained.views import draw_views
from litcam.callbacks.places.pictures import current_step
from litcam.callbacks.places.sending import Places
from litcam.callbacks.validation.batch import Batch
from litcam.callbacks.validation.chosen import (
    ShownImages,
    check_indices,
    find_dataset,
    find_loaders,
)
from litcam.callbacks.validation.pixels import Pixels


class ShownMaps:
    """What a `GradCAM` callback shows in one run.

    Args:
        classes: one view each, as for `GradCAM`.
        num_images: how many images of each loader are shown.
        indices: dataset indices of the images to show, instead of `num_images`.
        show: `"fixed"`, `"wrong"` or `"changed"`, as for `GradCAM`.
        pixels: mean and std of the images, empty to find them, and a function instead of them.

    Attributes:
        explained: the images of this validation on this process, as far as `bring` took them.
    """

    def __init__(
        self,
        classes: Sequence[str | int],
        num_images: int,
        indices: Sequence[int],
        show: str,
        *,
        pixels: tuple[Sequence[float], Sequence[float], Callable[[Tensor], Tensor] | None],
    ) -> None:
        self._classes, self._num_images, self._indices = classes, num_images, indices
        self._pixels = pixels
        self._chosen: dict[int, ShownImages] = {}
        self._num_classes: dict[int, int] = {}
        self._seen: dict[int, set[int]] = {}
        self._surest = None if show == "fixed" else Surest(show, num_images)
        self._show = show
        self.explained: list[Explained] = []
        self._kept: list[KeptMaps] = []
        self._choice: tuple[str, Pixels] | None = None
        self._any_images = False

    def begin(self) -> None:
        """Forgets the last epoch's images."""
        self.explained, self._kept, self._seen = [], [], {}
        if self._surest is not None:
            self._surest.begin()

    def keep(self, explained: list[Explained]) -> list[Explained]:
        """Those of every process that are shown."""
        return explained if self._surest is None else self._surest.keep(explained)

    def find(
        self, trainer: pl.Trainer, batch: Batch, batch_idx: int, dataloader_idx: int
    ) -> dict[int, int]:
        """Positions in a batch of images to show, as far as known before the forward.

        With their dataset indices.
        """
        shown = self._choose(trainer, dataloader_idx)
        self._any_images |= batch.size > 0
        if self._surest is not None:
            return shown.find_all(batch, batch_idx)
        return shown.find(batch, batch_idx, self._seen.setdefault(dataloader_idx, set()))

    def explain_nothing(self) -> str:
        """Why there is nothing to show, where nothing went wrong."""
        if not self._any_images:
            return (
                "has nothing to show: no batch held tensors (batch, channels, h, w); "
                "GradCAM(images=…) tells where its images are"
            )
        return (
            "has nothing to show: no batch's `index` named one of the images to show (it is to be "
            "each image's place in the dataset), or every batch was shorter than its loader's"
        )

    def count_classes(self, trainer: pl.Trainer, dataloader_idx: int) -> int:
        """How many classes the data names; 0 if it names none."""
        if dataloader_idx not in self._num_classes:
            loader = self._choose(trainer, dataloader_idx).loader
            names = Names.find(trainer, find_dataset(loader))
            self._num_classes[dataloader_idx] = len(names.classes)
        return self._num_classes[dataloader_idx]

    def add(self, trainer: pl.Trainer, recorded: Recorded, positions: dict[int, int]) -> list[str]:
        """Makes the maps of the images of one recorded batch.

        Args:
            trainer: is in validation or test.
            recorded: the batch's forward.
            positions: places in the batch, with their dataset indices.

        Returns:
            What could not be shown.
        """
        cam, answer, index = recorded.cam, recorded.answer, recorded.loader
        assert cam.made_at is not None
        shown = self._choose(trainer, index)
        names = Names.find(trainer, find_dataset(shown.loader))
        logits, labels = recorded.logits, recorded.labels
        if self._surest is not None:
            positions, problem = self._surest.choose(
                positions, answer.probabilities(logits), logits, labels, index, self.explained
            )
            if not positions:
                return [problem] if problem else []
        views, problems = find_views(self._classes, names, logits, labels)
        if not views:
            return problems
        grid = cam.made_at.grid
        made_by: dict[str, Any] = {
            "layer": recorded.layer,
            "grid": list(grid),
            "method": recorded.method,
        }
        made_by["index_known"] = shown.by_index and self._surest is None
        pixels = Pixels.find(trainer, cam.network, shown.loader, *self._pixels)
        self._kept.append(KeptMaps.make(recorded, positions, views, pixels, made_by))
        what = f", {answer.choice}," if answer.choice else ""
        if not (names.classes or answer.is_given):
            what += f" for {logits.shape[1]} classes that the data does not name"
        self._choice = (
            f"explains {type(cam.network).__name__}{what} at {recorded.layer} "
            f"({grid[0]}x{grid[1]}): {cam.made_at.reason}; shows {self._describe(shown)}",
            pixels,
        )
        if self._surest is None:
            self._seen[index] |= set(positions.values())
        else:
            problems += self.bring()
            self.explained = self._surest.keep(self.explained)
        return problems

    def bring(self) -> list[str]:
        """Takes what was made off the device: at the end, that nothing waits for it before.

        Returns:
            What is wrong with some of it.
        """
        explained, problems = bring_maps(self._kept)
        self.explained, self._kept = [*self.explained, *explained], []
        return problems

    @property
    def choice(self) -> str:
        """What is explained and where, for the log; empty before the first image."""
        if self._choice is None:
            return ""
        text, pixels = self._choice
        return f"{text}; pixels by {pixels.source}"

    def _describe(self, shown: ShownImages) -> str:
        if self._surest is None:
            return shown.describe()
        kind = "mistakes" if self._show == "wrong" else "changed answers"
        return f"the {self._num_images} surest {kind} of each validation"

    def _choose(self, trainer: pl.Trainer, index: int) -> ShownImages:
        if index not in self._chosen:
            loaders, batches = find_loaders(trainer)
            check_indices(loaders, self._indices)
            self._chosen[index] = ShownImages.choose(
                trainer, loaders[index], batches[index], self._indices, self._num_images
            )
        return self._chosen[index]


def log_maps(
    trainer: pl.Trainer, explained: Sequence[Explained], folder: Path, prefix: str, places: Places
) -> None:
    """Draws the images of every process and sends them to every place there is: on rank zero.

    Args:
        trainer: is in validation or test.
        explained: the images, each once.
        folder: where files are written.
        prefix: of the log keys, such as `val/gradcam`.
        places: where they go.
    """
    names = {
        index: Names.find(trainer, find_dataset(loader))
        for index, loader in enumerate(find_loaders(trainer)[0])
    }
    when = f"epoch {trainer.current_epoch}, step {current_step(trainer)}"
    places.log_images(trainer, draw_views(explained, names, prefix, when), folder)
