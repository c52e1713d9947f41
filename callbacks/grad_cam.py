"""Heatmaps of where the network looks, out of the validation forward itself, at every epoch."""

from collections.abc import Callable, Sequence
from functools import partial
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
from litcam.explain.methods.formulas import find_method
from litcam.explain.networks import is_compiled
from litcam.explain.scores import Target, check_activation


class GradCAM(EachValidation):
    """Explains validation images in their own forward and logs the heatmaps, every epoch.

    Works with no argument on any LightningModule that classifies images: it finds the network and
    its target layer and says which. No forward is run twice, and training stays bitwise the same.
    Pictures go to Weights & Biases and TensorBoard where such a logger is used, as
    `val/gradcam/<view>`, and into the folder `gradcam` of the run.

    Args:
        num_images: how many images are shown, spread evenly over the validation set.
        method: a name in `litcam.explain.METHODS`.
        network: dotted name of the network in the LightningModule; by default the outermost
            module that takes the images.
        target_layer: dotted name of the layer; by default found and checked.
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
        labels: from a batch to its labels, `(batch,)` or `(batch, num_classes)`, the same.
        mean: normalisation of the images, where it cannot be found.
        std: the same.
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
        target_layer: str = "",
        classes: Sequence[str | int] = ("predicted", "true"),
        indices: Sequence[int] = (),
        show: str = "fixed",
        every_n_epochs: int = 1,
        metrics: Sequence[str] | None = None,
        target: Target | None = None,
        activation: str = "",
        images: Callable[[Any], Tensor] | None = None,
        labels: Callable[[Any], Tensor] | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
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
        find_method(method)
        MapMetrics(metrics)
        if activation:
            check_activation(activation)
        self.show, self.target, self.activation = show, target, activation
        self._reading = Reading(images, labels)
        self.metrics = None if metrics is None else tuple(metrics)
        self.num_images, self.method = num_images, method
        self.classes = (classes,) if isinstance(classes, str) else tuple(classes)
        self.network, self.target_layer, self.name = network, target_layer, name
        self.indices, self.mean, self.std = tuple(indices), tuple(mean), tuple(std)
        super().__init__(every_n_epochs)

    def _forget(self) -> None:
        super()._forget()
        self._recorder: Recorder | None = None
        self._answer = Answer(self.target, self.activation)
        self._measured, self._alarms = MapMetrics(self.metrics), Alarms()
        self._shown = ShownMaps(
            self.classes,
            self.num_images,
            indices=self.indices,
            mean=self.mean,
            std=self.std,
            show=self.show,
        )
        self._positions: dict[int, int] = {}
        self._recording = False

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
        reading, answer = self._reading, self._answer
        self._recorder = Recorder(pl_module, *names, reading=reading, answer=answer)
        if self.metrics is None and is_compiled(pl_module):
            self._measured = MapMetrics(())
            rank_zero_info(
                "GradCAM measures no maps under torch.compile, where explained batches run "
                "uncompiled: GradCAM(metrics=['sparseness', …]) does"
            )

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

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the last epoch's images."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._shown.begin()

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
        if self._failed or not self._active:
            return
        self._positions = self._shown.find(trainer, batch, batch_idx, dataloader_idx)
        # Of several loaders the first is measured.
        if not self._positions and (dataloader_idx or not self._measured):
            return
        assert self._recorder is not None
        self._recorder.start(batch)
        self._recording = True

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
        recording, self._recording = self._recording, False
        if not recording or self._recorder is None:
            return
        count_classes = partial(self._shown.count_classes, trainer, dataloader_idx)
        cam, problem = self._recorder.stop(batch, count_classes)
        if cam is None:
            self._problems.append(problem)
            return
        assert cam.logits is not None
        labels, answer = self._reading.labels(batch), self._answer
        if positions or not answer.activation:
            answer.learn(cam.logits, several=self._reading.have_several(batch))
        if positions:
            self._problems += self._shown.add(
                trainer, self._recorder, cam, labels, answer, positions, dataloader_idx
            )
        if self._measured and not dataloader_idx:
            self._problems += self._measured.update(trainer, pl_module, cam, batch, labels, answer)
        cam.release()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws and logs what was explained, on rank zero."""
        if not self._active:
            return
        # Every process comes here, whatever failed before: these are the collectives.
        stage = "test" if trainer.testing else "val"
        values, left_out = self._measured.compute(trainer, pl_module.device, whole=not self._failed)
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
            problems.append("has nothing to show: no batch held tensors (batch, channels, h, w)")
        self._notes.tell(next((part[2] for part in parts if part[2]), ""))
        self._notes.warn([*left_out, *problems, *describe_problems(explained)])
        if self._failed:
            return
        try:
            raise_alarms(trainer, alarms, self._folder)
            if explained:
                log_maps(trainer, explained, self._folder, f"{stage}/{self.name}")
        except Exception as error:
            self._notes.warn([describe_failure(error, RETRY)])

    on_test_start = on_validation_start
    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    # What a checkpoint keeps

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

    def _close(self) -> None:
        self._positions, self._recording = {}, False
        if self._recorder is not None:
            self._recorder.close()

    def _give_up(self, error: Exception) -> None:
        self._close()
        super()._give_up(error)
