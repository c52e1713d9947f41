"""Heatmaps of where the network looks, out of the validation forward itself, at every epoch."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from litcam.callbacks.each_validation import EachValidation
from litcam.callbacks.explained.alarm import Alarms, raise_alarms
from litcam.callbacks.explained.answer import Answer
from litcam.callbacks.explained.maps import describe_problems, merge
from litcam.callbacks.explained.measured import MapMetrics
from litcam.callbacks.explained.recorder import Recorder
from litcam.callbacks.explained.shown_maps import ShownMaps, log_maps
from litcam.callbacks.explained.surest import SHOW
from litcam.callbacks.notes import RETRY, describe_failure, never_kills
from litcam.callbacks.places.pictures import gather, picture_folder
from litcam.callbacks.validation.batch import Reading
from litcam.callbacks.validation.beside import takes_iterator
from litcam.explain.methods.formulas import VIT_METHODS, find_method
from litcam.explain.scores import Target, check_activation


class GradCAM(EachValidation):
    """Explains validation images in their own forward and logs the heatmaps, every epoch.

    Works with no argument on any LightningModule that classifies images: it finds the network and
    its target layer and says which. No forward is run twice, and training stays bitwise the same.
    Pictures go to the run's loggers, as `val/gradcam/<view>`, and into its folder `gradcam`.

    Args:
        num_images: how many images are shown, spread evenly over the validation set.
        method: a name in `litcam.explain.METHODS`, or in `VIT_METHODS` for a ViT of timm's.
        network: dotted name of the network in the LightningModule; by default the outermost
            module that takes the images.
        target_layer: dotted name of the layer; by default found and checked. Several names for
            `method="layercam"`.
        classes: one view each: `"predicted"`, `"true"`, a class name or a class number.
        indices: dataset indices of the images to show, instead of `num_images`.
        show: `"fixed"`, the same images every time; `"wrong"`, the surest mistakes of a validation;
            `"changed"`, the surest answers that were others at the last one.
        every_n_epochs: draw and measure at every n-th validation only.
        metrics: numbers for the maps of all validation images, logged as `val/gradcam/<metric>`;
            every image is then explained, in the same forward. By default those of
            `litcam.explain.METRICS` that ask for no forward more: `"pointing_game"` and
            `"energy_inside"` where batches have `mask` or `box`, `"sparseness"`, `"drift"`,
            `"blank_maps"`. The others run more forwards, which `limit_val_batches` bounds; `()`
            measures nothing. From them comes the alarm.
        target: from the network's output to one number an image `(batch,)`, or several
            `(batch, k)`, which are explained instead of class scores: for segmentation, embeddings,
            detection, regression. Then there is the view `"target"`, or one for each of `classes`.
        activation: what makes probabilities of the scores: `"softmax"`, `"sigmoid"` (one logit, or
            several classes an image) or `"identity"` (they are some); by default told by scores and
            labels.
        images: from a batch to its images `(batch, channels, height, width)`, where they are not
            found.
        labels: from a batch to its labels, `(batch,)` or `(batch, num_classes)`, or to None.
        mean: normalisation of the images, where it cannot be found.
        std: the same.
        pixels: from what the network gets to `(batch, 3, height, width)` in [0, 1], instead.
        name: in log keys and of the folder; two such callbacks need two names.

    Raises:
        ValueError: an argument is out of range, or a name does not exist (at the start of a run).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradCAM()], logger=False)
    """

    def __init__(
        self,
        num_images: int = 8,
        method: str = "gradcam",
        *,
        network: str = "",
        target_layer: str | Sequence[str] = "",
        classes: Sequence[str | int] = ("predicted", "true"),
        indices: Sequence[int] = (),
        show: str = "fixed",
        every_n_epochs: int = 1,
        metrics: Sequence[str] | None = None,
        target: Target | None = None,
        activation: str = "",
        images: Callable[[Any], Tensor] | None = None,
        labels: Callable[[Any], Tensor | None] | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        pixels: Callable[[Tensor], Tensor] | None = None,
        name: str = "gradcam",
    ) -> None:
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        if len(mean) != len(std):
            raise ValueError(f"mean and std must be of one length, got {mean} and {std}")
        if not classes:
            raise ValueError("classes must name a view: predicted, true, a class name or number")
        if show not in SHOW:
            raise ValueError(f"show must be one of {', '.join(SHOW)}, got {show!r}")
        if indices and show != "fixed":
            raise ValueError(f"indices names the images, and so does show={show!r}: pass one")
        if method not in VIT_METHODS:
            find_method(method)
        MapMetrics(metrics)
        check_activation(activation)
        self.show, self.target, self.activation = show, target, activation
        self._reading = Reading(images, labels)
        self.metrics = None if metrics is None else tuple(metrics)
        self.num_images, self.indices, self.method = num_images, tuple(indices), method
        self.classes = (classes,) if isinstance(classes, str) else tuple(classes)
        self.network, self.target_layer, self.name = network, target_layer, name
        self.mean, self.std, self.pixels = tuple(mean), tuple(std), pixels
        super().__init__(every_n_epochs)

    def _forget(self) -> None:
        super()._forget()
        self._recorder: Recorder | None = None
        self._answer = Answer(self.target, self.activation)
        self._measured, self._alarms = MapMetrics(self.metrics), Alarms()
        pixels = self.mean, self.std, self.pixels
        chosen = self.num_images, self.indices, self.show
        self._shown = ShownMaps(self.classes, *chosen, pixels=pixels)
        self._positions: dict[int, int] = {}

    # The run

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begins anew, and asks every process where the pictures go."""
        super().setup(trainer, pl_module, stage)
        self._folder = picture_folder(trainer, self.name)
        if (cost := self._measured.describe_cost()) and not self._off:
            rank_zero_info(f"GradCAM {cost}")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks up the given names, so that a misspelt one stops the run before it starts.

        Not in `setup`: the LightningModule may make its network in its own.
        """
        if self._recorder is not None:
            return
        names = self.method, self.network, self.target_layer
        # Where a few batches hold the images to show, compiling takes longer than they do.
        compiles = bool(self._measured)
        self._recorder = Recorder(pl_module, *names, answer=self._answer, compiles=compiles)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same where nothing is trained."""
        super().on_validation_start(trainer, pl_module)
        self.on_fit_start(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves nothing of the network behind."""
        self._close()
        super().teardown(trainer, pl_module, stage)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Takes the hooks off."""
        # A forward that Ctrl+C broke off would restore the modes of a validation that is over.
        inference = torch.inference_mode(torch.is_inference_mode_enabled())
        with inference, torch.set_grad_enabled(torch.is_grad_enabled()):
            self._close()
        super().on_exception(trainer, pl_module, exception)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the last epoch's images."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._shown.begin()
        if self._recorder is not None:
            self._recorder.begin()
        if self._active and takes_iterator(trainer, pl_module):
            self._refuse("shows nothing: the step takes its batches itself, by `dataloader_iter`")

    @never_kills
    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Puts the hooks on where the batch holds images to show."""
        if self._failed or not self._active or self._recorder is None:
            return
        # Before the step, which may take things out.
        read = self._reading.read(batch)
        self._positions = self._shown.find(trainer, read, batch_idx, dataloader_idx)
        # Of several loaders the first is measured.
        if self._positions or (self._measured and not dataloader_idx):
            num_classes = self._shown.count_classes(trainer, dataloader_idx)
            self._recorder.start(batch, read, dataloader_idx, num_classes)

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
        """Takes the hooks off and makes the maps."""
        positions, self._positions = self._positions, {}
        if self._failed or self._recorder is None:
            return
        recorded, problem = self._recorder.stop(learn=bool(positions))
        if self._recorder.refusal:
            self._refuse(self._recorder.refusal)
        elif problem:
            self._problems.append(problem)
        if recorded is None:
            return
        if positions:
            self._problems += self._shown.add(trainer, recorded, positions)
        if self._measured and not dataloader_idx:
            self._problems += self._measured.update(trainer, pl_module, recorded, batch)
        recorded.cam.release()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws and logs what was explained, on rank zero."""
        if not self._active:
            return
        # Every process comes here, whatever failed before: these are the collectives.
        stage = "test" if trainer.testing else "val"
        whole = not (self._failed or self._recorder is None or self._recorder.missed)
        values, left_out = self._measured.compute(trainer, pl_module.device, whole=whole)
        for metric, value in values.items():
            # The same on every process already; Lightning warns unless it may compare them.
            key = f"{stage}/{self.name}/{metric}"
            pl_module.log(key, value, batch_size=1, reduce_fx="max", sync_dist=True)
        alarms = self._alarms.check(self._measured.summarise(trainer.current_epoch))
        self._bring()
        parts = gather(trainer, (self._shown.explained, self._problems, self._shown.choice))
        self._problems = []
        self._shown.begin()
        if not trainer.is_global_zero:
            return
        explained = self._shown.keep(merge([part[0] for part in parts]))
        problems = [problem for part in parts for problem in part[1]]
        if not explained and not problems and self.show == "fixed":
            problems.append(self._shown.explain_nothing())
        self._notes.tell(next((part[2] for part in parts if part[2]), ""))
        self._notes.warn([*left_out, *problems, *describe_problems(explained)])
        if self._failed:
            return
        try:
            raise_alarms(trainer, alarms, self._folder, self._places)
            if explained:
                prefix = f"{stage}/{self.name}"
                log_maps(trainer, explained, self._folder, prefix, self._places)
        except Exception as error:
            self._notes.warn([describe_failure(error, RETRY)])

    on_test_start = on_validation_start
    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    @property
    def state_key(self) -> str:
        """Tells two such callbacks apart by their names."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """What the alarm has seen and said, and how many validations there were."""
        return {**self._alarms.state_dict(), **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self._alarms.load_state_dict(state_dict)
        super().load_state_dict(state_dict)

    # Its parts

    @never_kills
    def _bring(self) -> None:
        self._problems += self._shown.bring()

    def _refuse(self, problem: str) -> None:
        """Shows nothing of this validation: what one loader tells holds for what others showed."""
        self._problems.append(problem)
        self._failed = True
        self._shown.begin()

    def _close(self) -> None:
        self._positions = {}
        if self._recorder is not None:
            self._recorder.close()

    def _give_up(self, error: Exception) -> None:
        self._close()
        super()._give_up(error)
