"""What a masked autoencoder sees, predicts and should have predicted, at every epoch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from litcam.callbacks.each_validation import EachValidation
from litcam.callbacks.explained.maps import Names
from litcam.callbacks.explained.reconstruction_views import (
    KeptReconstructions,
    Reconstructed,
    bring_reconstructions,
    draw_reconstructions,
    reconstruct_images,
)
from litcam.callbacks.notes import never_kills
from litcam.callbacks.places.pictures import current_step, gather, picture_folder
from litcam.callbacks.validation.batch import Reading, find_labels
from litcam.callbacks.validation.beside import fetch_images, untouched, whole_weights
from litcam.callbacks.validation.chosen import (
    ShownImages,
    check_indices,
    find_dataset,
    find_loaders,
)
from litcam.callbacks.validation.pixels import Pixels


class Reconstructions(EachValidation):
    """Hides the same cells of the same validation images every epoch and logs what is predicted.

    Works on `litcam.lightning_modules.MAE`, and on any LightningModule with a method
    `reconstruct(images, noise)` like its own and an attribute `num_cells`. A picture has four
    tiles: what the encoder sees, what is predicted, both together, and the original. The pictures
    go where `GradCAM`'s go, as `val/reconstructions`, and into the folder `reconstructions` of the
    run; training stays bitwise the same. Of several validation loaders the first is shown.

    Args:
        num_images: how many images are shown, spread evenly over the validation set.
        indices: dataset indices of the images to show, instead of `num_images`.
        every_n_epochs: draw at every n-th validation only.
        steps: counts of optimiser steps after which to draw as well, in the middle of training.
        mean: normalisation of the images, where it cannot be found.
        std: the same.
        name: in the log key and of the folder; two such callbacks need two names.

    Raises:
        ValueError: an argument is out of range, or (at the start of a run) the LightningModule
            cannot reconstruct.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Reconstructions(steps=[100, 500])], logger=False)
    """

    def __init__(
        self,
        num_images: int = 8,
        *,
        indices: Sequence[int] = (),
        every_n_epochs: int = 1,
        steps: Sequence[int] = (),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        name: str = "reconstructions",
    ) -> None:
        for argument, value in (("num_images", num_images), *(("steps", step) for step in steps)):
            if value < 1:
                raise ValueError(f"{argument} must be at least 1, got {value}")
        if len(mean) != len(std):
            raise ValueError(f"mean and std must be of one length, got {mean} and {std}")
        self.num_images, self.indices, self.name = num_images, tuple(indices), name
        self.steps, self.mean, self.std = frozenset(steps), tuple(mean), tuple(std)
        super().__init__(every_n_epochs)

    def _forget(self) -> None:
        super()._forget()
        self._shown: ShownImages | None = None
        self._seen: set[int] = set()
        self._made: list[Reconstructed] = []
        self._waiting: list[KeptReconstructions] = []
        self._kept: dict[int, Tensor] = {}
        self._drawn: set[int] = set()
        self._asked: set[int] = set()
        self._choice = ""

    # The run

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begins anew, and asks every process where the pictures go."""
        super().setup(trainer, pl_module, stage)
        self._folder = picture_folder(trainer, self.name)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses a module that cannot reconstruct. Not in `setup`, where it may be unfinished."""
        able = callable(getattr(pl_module, "reconstruct", None))
        if not (able and isinstance(getattr(pl_module, "num_cells", None), int)):
            raise ValueError(
                "Reconstructions needs a LightningModule with reconstruct(images, noise) and "
                f"num_cells, got {type(pl_module).__name__}: train litcam.lightning_modules.MAE, "
                "or leave Reconstructions out of the Trainer's callbacks"
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same where nothing is trained."""
        super().on_validation_start(trainer, pl_module)
        self.on_fit_start(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the last epoch's images."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._made, self._waiting, self._seen = [], [], set()

    @never_kills
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Reconstructs the shown images of a batch."""
        if self._failed or not self._active or dataloader_idx:
            return
        read = Reading().read(batch)
        positions = self._choose_images(trainer).find(read, batch_idx, self._seen)
        if not positions or (images := read.images) is None:
            return
        self._seen |= set(positions.values())
        self._waiting.append(
            self._reconstruct(trainer, pl_module, images, positions, find_labels(batch))
        )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws and logs what was reconstructed, on rank zero."""
        if not self._active:
            return
        self._finish(later=any(step > trainer.global_step for step in self.steps))
        # Every process comes here, whatever failed before: this is the one collective.
        parts = gather(trainer, (self._made, self._problems, self._choice))
        self._made, self._problems = [], []
        if not trainer.is_global_zero:
            return
        # Where no index is known, every process counts from zero: the first's images are kept.
        made = {image.index: image for part in reversed(parts) for image in part[0]}
        problems = [problem for part in parts for problem in part[1]]
        if not made and not problems:
            problems.append("has nothing to show: no batch held tensors (batch, channels, h, w)")
        self._notes.tell(next((part[2] for part in parts if part[2]), ""))
        self._kept = {i: image.kept for i, image in made.items() if image.kept is not None}
        # A validation right after one of `steps` has the same pictures at the same step.
        if made and not self._failed and trainer.global_step not in self._drawn:
            self._log(trainer, list(made.values()))
        self._notes.warn([*problems, *self._problems])
        self._problems = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Draws after each of `steps`, on rank zero: it has the images of all."""
        step = trainer.global_step
        # A step of several batches is asked for once, and alike on every process.
        if self._off or step not in self.steps or step in self._asked:
            return
        self._asked.add(step)
        with whole_weights(trainer):
            if trainer.is_global_zero:
                self._draw_step(trainer, pl_module)
                self._notes.warn(self._problems)
                self._problems = []

    @property
    def state_key(self) -> str:
        """Tells two such callbacks apart."""
        return self._generate_state_key(name=self.name)

    # Its parts

    def _choose_images(self, trainer: pl.Trainer) -> ShownImages:
        if self._shown is None:
            loaders, batches = find_loaders(trainer)
            check_indices(loaders[:1], self.indices)
            wanted = self.indices, self.num_images
            self._shown = ShownImages.choose(trainer, loaders[0], batches[0], *wanted)
        return self._shown

    @never_kills
    def _draw_step(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        with untouched(trainer, module):
            kept = self._kept or self._fetch(trainer)
            if not kept:
                self._problems.append("waits for the first validation: no images to draw before")
                return
            images = torch.stack(list(kept.values())).to(module.device)
            made = [self._reconstruct(trainer, module, images, dict(enumerate(kept)))]
            self._log(trainer, self._bring(made))
            self._notes.tell(self._choice)
        self._drawn.add(trainer.global_step)

    def _fetch(self, trainer: pl.Trainer) -> dict[int, Tensor]:
        if trainer.val_dataloaders:
            shown = self._choose_images(trainer)
            self._kept = fetch_images(trainer, shown.loader, shown.indices)
        return self._kept

    def _reconstruct(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        images: Tensor,
        positions: dict[int, int],
        labels: Tensor | None = None,
    ) -> KeptReconstructions:
        """Reconstructs rows of a batch, given with their dataset indices."""
        shown = self._choose_images(trainer)
        pixels = Pixels.find(trainer, module, shown.loader, self.mean, self.std)
        rows, indices = list(positions), list(positions.values())
        with untouched(trainer, module):
            return reconstruct_images(
                module,
                images,
                rows,
                indices,
                pixels,
                labels=labels,
                index_known=shown.by_index,
            )

    @never_kills
    def _finish(self, *, later: bool) -> None:
        """Takes what was made off the device; the images too if they are drawn `later`."""
        made = self._bring(self._waiting)
        # Tensors of inference mode could not be used in training.
        with torch.inference_mode(False):
            kept = [
                image.kept.clone() if later and image.kept is not None else None for image in made
            ]
        self._made = [replace(image, kept=one) for image, one in zip(made, kept, strict=True)]

    def _bring(self, waiting: Sequence[KeptReconstructions]) -> list[Reconstructed]:
        made = bring_reconstructions(waiting)
        if made and self._shown is not None:
            borrowed = "; it uses each cell's true mean and contrast" if made[0].borrowed else ""
            self._choice = (
                f"shows {self._shown.describe()}, {made[0].share:.0%} of each hidden; "
                f"pixels by {waiting[0].pixels.source}{borrowed}"
            )
        return made

    @never_kills
    def _log(self, trainer: pl.Trainer, made: Sequence[Reconstructed]) -> None:
        names = Names.find(trainer, find_dataset(self._choose_images(trainer).loader))
        when = f"epoch {trainer.current_epoch}, step {current_step(trainer)}"
        views = {f"val/{self.name}": draw_reconstructions(made, names, when)}
        self._places.log_images(trainer, views, self._folder)
