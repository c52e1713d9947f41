"""A classifier over any timm backbone, with the usual recipe for fine-tuning it."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from litcam.lightning_modules import optim
from litcam.lightning_modules.arguments import check_arguments
from litcam.lightning_modules.backbones import (
    create_backbone,
    freeze_modules,
    has_pretrained_head,
    start_near_zero,
    to_channels_last,
    warn_of_class_order,
    warn_of_layer_decay,
)
from litcam.lightning_modules.probing import freeze_all_but_head
from litcam.lightning_modules.steps import GuardedSteps
from litcam.lightning_modules.weights import load_weights

__all__ = ["Classifier"]

Batch = dict[str, Tensor] | tuple[Tensor, Tensor] | list[Tensor]


class Classifier(GuardedSteps):
    """Train a timm model to classify images.

    A batch is a dict with ``image`` (batch, 3, height, width), normalised, and ``label`` (batch,),
    or the pair ``(images, labels)``. Logged every ``log_every_n_steps``: ``train/loss_step`` and
    ``train/images_per_second``; once an epoch: ``train/loss``, and for ``val`` and ``test`` alike
    ``val/loss``, ``val/acc1``, ``val/acc5`` (over five classes) and ``val/ece``
    (calibration error, 15 bins).

    Args:
        backbone: a timm model's name; the model is at ``.backbone``, unmodified.
        num_classes: number of classes of the head.
        pretrained: start from timm's pretrained weights, downloaded once.
        weights: start from this file or folder instead, whoever made it; see `load_weights`.
            Where both are given, this counts.
        backbone_args: further arguments of ``timm.create_model``, such as ``img_size``.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth; not every CNN has it.
        linear_probe: train nothing but a fresh head; ``batchnorm`` standardises what it gets, as
            MAE's probe does.
        freeze: modules or parameters of the backbone that are not trained, such as ``layer1``;
            their BatchNorm statistics and dropout stand still as well.
        norm_eval: keep BatchNorm in eval mode while training, on the means and variances of the
            pretrained weights; its scales and shifts are trained. For short runs on few images.
        optimizer: any name of ``timm.optim.list_optimizers()``; ``sgd`` has Nesterov's momentum.
        optimizer_args: its own arguments, such as ``betas``, ``eps`` or ``momentum``.
        lr: learning rate for an effective batch of 256.
        scale_lr: scale it to the batch × accumulation × devices of the run.
        weight_decay: not applied to norms and biases.
        weight_decay_end: where a cosine over the whole run takes it; by default it stays.
        layer_decay: factor on the learning rate from each layer to the one below it;
            0.65 to 0.75 suit a pretrained ViT.
        norm_lr_scale: factor on the learning rate of normalisation layers.
        head_lr_scale: factor on the learning rate of the head, such as 10 for a fresh one.
        warmup_epochs: linear warm-up, then cosine; null is a tenth of the run.
        warmup_lr_ratio: first over peak learning rate; by default one step's part of the warm-up.
        warmup_prefix: begin the cosine after the warm-up; timm's default is beneath it.
        min_lr_ratio: where the cosine ends, as a share of the peak.
        step_decay: instead of the cosine: every how many epochs the rate falls, and the factor.
        mixup: alpha of Mixup (arXiv:1710.09412); 0 is off.
        cutmix: alpha of CutMix (arXiv:1905.04899); 0 is off.
        label_smoothing: in training; the validation loss is plain cross-entropy.
        bce_threshold: train with binary cross-entropy (arXiv:2110.00476) and count a class as
            present where its share of the target is above this, such as 0.2.
        channels_last: keep convolutions' weights and images with channels last in memory, as a
            GPU's bfloat16 kernels want them; shapes and results stay the same.
        compile: run the backbone under ``torch.compile``, in place.

    Raises:
        ValueError: if an argument is out of range, or the backbone or a name in ``freeze`` unknown.

    >>> import torch
    >>> Classifier("resnet10t", 10)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        backbone: str = "resnet34",
        num_classes: int = 1000,
        *,
        pretrained: bool = False,
        weights: str = "",
        backbone_args: dict[str, Any] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        linear_probe: bool | Literal["batchnorm"] = False,
        freeze: list[str] | None = None,
        norm_eval: bool = False,
        optimizer: str = "adamw",
        optimizer_args: dict[str, Any] | None = None,
        lr: float = 5e-4,
        scale_lr: bool = True,
        weight_decay: float = 0.05,
        weight_decay_end: float | None = None,
        layer_decay: float = 1.0,
        norm_lr_scale: float = 1.0,
        head_lr_scale: float = 1.0,
        warmup_epochs: float | None = 5.0,
        warmup_lr_ratio: float | None = None,
        warmup_prefix: bool = True,
        min_lr_ratio: float = 0.01,
        step_decay: tuple[float, float] | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.1,
        bce_threshold: float | None = None,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002 - torch's name for it
    ) -> None:
        super().__init__()
        pretrained = pretrained and not weights
        self.save_hyperparameters()
        check_arguments("Classifier", self.hparams)
        options = {
            "drop_rate": drop_rate,
            "drop_path_rate": drop_path_rate,
            **(backbone_args or {}),
        }
        if linear_probe:
            # timm's CNNs drop features in the root's forward, which is not in eval mode.
            options["drop_rate"] = 0.0
        self.backbone = create_backbone(backbone, num_classes, pretrained=pretrained, **options)
        if weights or (pretrained and not has_pretrained_head(self.backbone)):
            start_near_zero(self.backbone)
        if weights:
            load_weights(self.backbone, weights)
        self.num_classes = num_classes
        self._frozen = freeze_modules(self.backbone, freeze or [])
        if linear_probe:
            standardised = linear_probe == "batchnorm"
            self._frozen += freeze_all_but_head(self.backbone, standardised=standardised)
        elif norm_eval:
            self._frozen += [m for m in self.backbone.modules() if isinstance(m, _BatchNorm)]
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            raise ValueError(f"freeze={freeze} leaves nothing to train; name fewer modules")
        if channels_last:
            to_channels_last(self.backbone)
        if compile:
            self.backbone.compile()
        self._is_trained = pretrained or bool(weights)
        self._mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        # Not self.log's own mean: over ranks it rounds the mean count of images down to an integer,
        # so that 5 and 4 images on two ranks make the loss 9/8 of what it is (Lightning 2.6.6).
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.test_loss = MeanMetric(nan_strategy="disable")
        self.val_metrics = _metrics(num_classes)
        self.test_metrics = _metrics(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (batch, num_classes)."""
        if self.hparams["channels_last"]:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.backbone(images)

    def setup(self, stage: str) -> None:
        """Hold the head against the data.

        Raises:
            ValueError: if the datamodule has another number of classes.
        """
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        found = getattr(datamodule, "num_classes", None)
        if found is not None and found != self.num_classes:
            raise ValueError(
                f"the head has num_classes={self.num_classes} but {type(datamodule).__name__} has "
                f"{found} classes; pass num_classes={found} to Classifier"
            )
        classes = getattr(datamodule, "classes", None)
        if classes is not None and self.hparams["pretrained"] and not self.hparams["linear_probe"]:
            warn_of_class_order(self.backbone, list(classes))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return optimiser and schedule; see `optim.configure`."""
        if self.hparams["layer_decay"] < 1 and not self._is_trained:
            warn_of_layer_decay(self.hparams["layer_decay"])
        return optim.configure(self.backbone, self.trainer, optim.Recipe.of(self.hparams))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, mixed if ``mixup`` or ``cutmix`` is on."""
        images, labels = _images_and_labels(batch)
        if self.hparams["mixup"] or self.hparams["cutmix"]:
            images, labels = self._mixed(images, labels)
        loss = self._loss(self(images), labels)
        self.train_loss.update(loss.detach().expand(len(labels)))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.watch(loss, batch, len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update loss and metrics under ``val/``."""
        self._evaluate(batch, "val", self.val_loss, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update loss and metrics under ``test/``."""
        self._evaluate(batch, "test", self.test_loss, self.test_metrics)

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Return predicted ``label`` and its ``probability`` (batch,), and ``index`` if known."""
        images = batch if isinstance(batch, Tensor) else _images_and_labels(batch)[0]
        probability, label = self(images).float().softmax(dim=-1).max(dim=-1)
        known = {"index": batch["index"]} if isinstance(batch, dict) and "index" in batch else {}
        return {**known, "label": label, "probability": probability}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint enough on its own: no file or download to load it again."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] |= {"pretrained": False, "weights": ""}
        datamodule = getattr(self._trainer, "datamodule", None)
        checkpoint["class_names"] = list(getattr(datamodule, "class_names", []))
        checkpoint["image_size"] = getattr(datamodule, "image_size", None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know that the weights are no longer random."""
        self._is_trained = True

    def on_train_start(self) -> None:
        """Put frozen modules into eval mode."""
        # Not in the constructor: Lightning warns of modules it finds in eval mode before this.
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode of everything but frozen modules, which stay in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compare logits with labels (batch,) or with shares of classes (batch, num_classes)."""
        smoothing, threshold = self.hparams["label_smoothing"], self.hparams["bce_threshold"]
        loss: Tensor
        if threshold is not None:
            loss = BinaryCrossEntropy(smoothing, threshold)(logits, targets)
        elif targets.ndim == 2:  # which Mixup has smoothed
            loss = SoftTargetCrossEntropy()(logits, targets)
        else:
            loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        return loss

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if len(images) % 2:
            raise ValueError(
                f"mixup and cutmix pair images, but a train batch has {len(images)}; "
                "use an even batch_size and drop_last=True in the train loader"
            )
        # timm mixes in place, and callbacks still want to see the batch as it came.
        return self._mix(images.clone(), labels)

    def _evaluate(
        self, batch: Batch, stage: str, mean_loss: MeanMetric, metrics: MetricCollection
    ) -> None:
        images, labels = _images_and_labels(batch)
        logits = self(images).float()
        # One loss an image: with nan_strategy="disable", torchmetrics 1.9 ignores weights.
        mean_loss.update(F.cross_entropy(logits, labels, reduction="none"))
        # Probabilities: torchmetrics takes logits that happen to lie in [0, 1] for probabilities.
        metrics.update(logits.softmax(dim=-1), labels)
        for name, metric in [("loss", mean_loss), *metrics.items(copy_state=False)]:
            on_bar = stage == "val" and name in ("loss", "acc1")
            self.log(f"{stage}/{name}", metric, prog_bar=on_bar, on_step=False, on_epoch=True)


def _images_and_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    if isinstance(batch, dict):
        return batch["image"], batch["label"]
    return batch[0], batch[1]


def _metrics(num_classes: int) -> MetricCollection:
    """Make top-1, top-5 (over five classes) and calibration error."""
    metrics: dict[str, Any] = {
        "acc1": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "ece": MulticlassCalibrationError(num_classes, n_bins=15, validate_args=False),
    }
    if num_classes > 5:
        metrics["acc5"] = MulticlassAccuracy(
            num_classes, top_k=5, average="micro", validate_args=False
        )
    # Compute groups join metrics whose states agree after one batch, as top-1 and top-5 do on a
    # batch that is all right or all wrong, and then report the one for the other.
    return MetricCollection(metrics, compute_groups=False)
