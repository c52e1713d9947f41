"""The maps of the validation images that are shown: chosen, made, drawn and logged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from litcam.callbacks.explained.answer import Answer
from litcam.callbacks.explained.maps import Explained, KeptMaps, Names, bring_maps, find_views
from litcam.callbacks.explained.recorder import Recorder
from litcam.callbacks.explained.surest import Surest
from litcam.callbacks.explained.views import draw_views
from litcam.callbacks.places.pictures import current_step
from litcam.callbacks.places.sending import log_images
from litcam.callbacks.validation.chosen import (
    ShownImages,
    check_indices,
    find_dataset,
    find_loaders,
)
from litcam.callbacks.validation.pixels import Pixels
from litcam.explain import CAM


class ShownMaps:
    """What a `GradCAM` callback shows in one run.

    Args:
        classes: one view each, as for `GradCAM`.
        num_images: how many images of each loader are shown.
        indices: dataset indices of the images to show, instead of `num_images`.
        mean: normalisation of the images, empty to find it.
        std: the same.
        show: `"fixed"`, `"wrong"` or `"changed"`, as for `GradCAM`.

    Attributes:
        explained: the images of this validation on this process, as far as `bring` took them.
    """

    def __init__(
        self,
        classes: Sequence[str | int],
        num_images: int,
        *,
        indices: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        show: str,
    ) -> None:
        self._classes, self._num_images, self._indices = classes, num_images, indices
        self._normalisation = tuple(mean), tuple(std)
        self._chosen: dict[int, tuple[Any, ShownImages]] = {}
        self._seen: dict[int, set[int]] = {}
        self._surest = None if show == "fixed" else Surest(show, num_images)
        self._show = show
        self.explained: list[Explained] = []
        self._kept: list[KeptMaps] = []
        self._choice: tuple[str, Pixels] | None = None

    def begin(self) -> None:
        """Forgets the last epoch's images."""
        self.explained, self._kept, self._seen = [], [], {}
        if self._surest is not None:
            self._surest.begin()

    def keep(self, explained: list[Explained]) -> list[Explained]:
        """Those of every process that are shown."""
        return explained if self._surest is None else self._surest.keep(explained)

    def find(
        self, trainer: pl.Trainer, batch: Any, batch_idx: int, dataloader_idx: int
    ) -> dict[int, int]:
        """Positions in a batch of images to show, as far as known before the forward.

        With their dataset indices.
        """
        loader, shown = self._choose(trainer, dataloader_idx)
        if self._surest is not None:
            return shown.find_all(batch, batch_idx, loader)
        return shown.find(batch, batch_idx, loader, self._seen.setdefault(dataloader_idx, set()))

    def count_classes(self, trainer: pl.Trainer, dataloader_idx: int) -> int:
        """How many classes the data names; 0 if it names none."""
        loader, _ = self._choose(trainer, dataloader_idx)
        return len(Names.find(trainer, find_dataset(loader)).classes)

    def add(
        self,
        trainer: pl.Trainer,
        recorder: Recorder,
        cam: CAM,
        labels: Tensor | None,
        answer: Answer,
        positions: dict[int, int],
        dataloader_idx: int,
    ) -> list[str]:
        """Makes the maps of the images of one recorded batch.

        Args:
            trainer: is in validation or test.
            recorder: of the network.
            cam: has recorded the batch's forward.
            labels: class numbers `(batch,)`, or None.
            answer: what of the network's output is explained.
            positions: places in the batch, with their dataset indices.
            dataloader_idx: which loader the batch came from.

        Returns:
            What could not be shown.
        """
        assert cam.logits is not None and cam.images is not None and cam.target_layer is not None
        loader, shown = self._choose(trainer, dataloader_idx)
        names = Names.find(trainer, find_dataset(loader))
        labels = None if cam.logits.shape[1] < 2 else labels
        probabilities = answer.probabilities(cam.logits)
        if self._surest is not None:
            positions, problem = self._surest.choose(
                positions, probabilities, labels, dataloader_idx, self.explained
            )
            if not positions:
                return [problem] if problem else []
        views, problems = find_views(self._classes, names, cam.logits, labels)
        if not views:
            return problems
        layer = f"{recorder.name_of(cam.network)}.{cam.target_layer.name}".lstrip(".")
        grid = cam.target_layer.grid
        made_by: dict[str, Any] = {"layer": layer, "grid": list(grid), "method": recorder.method}
        made_by["index_known"] = shown.by_index and self._surest is None
        pixels = Pixels.find(trainer, cam.network, loader, self._normalisation)
        kept = KeptMaps.make(
            cam,
            positions,
            views,
            labels,
            probabilities,
            dataloader_idx=dataloader_idx,
            pixels=pixels,
            made_by=made_by,
        )
        self._kept.append(kept)
        self._choice = (
            f"explains {type(cam.network).__name__} at {layer} ({grid[0]}x{grid[1]}): "
            f"{cam.target_layer.reason}; shows {self._describe(shown)}",
            pixels,
        )
        if self._surest is None:
            self._seen[dataloader_idx] |= set(positions.values())
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

    def _choose(self, trainer: pl.Trainer, index: int) -> tuple[Any, ShownImages]:
        if index not in self._chosen:
            loaders, batches = find_loaders(trainer)
            check_indices(loaders, self._indices)
            shown = ShownImages.choose(
                trainer, loaders[index], batches[index], self._indices, self._num_images
            )
            self._chosen[index] = loaders[index], shown
        return self._chosen[index]


def log_maps(
    trainer: pl.Trainer, explained: Sequence[Explained], folder: Path, prefix: str
) -> None:
    """Draws the images of every process and sends them to every place there is: on rank zero.

    Args:
        trainer: is in validation or test.
        explained: the images, each once.
        folder: where files are written.
        prefix: of the log keys, such as `val/gradcam`.
    """
    names = {
        index: Names.find(trainer, find_dataset(loader))
        for index, loader in enumerate(find_loaders(trainer)[0])
    }
    when = f"epoch {trainer.current_epoch}, step {current_step(trainer)}"
    log_images(trainer, draw_views(explained, names, prefix, when), folder)
