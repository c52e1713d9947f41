"""Masked autoencoding of any timm ViT, Swin or CNN."""

from typing import Any, Literal

import torch
from einops import rearrange
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.regression import R2Score

from litcam.lightning_modules import optim
from litcam.lightning_modules.arguments import check_arguments
from litcam.lightning_modules.masked.decoders import create_decoder
from litcam.lightning_modules.masked.encoders import (
    check_cells,
    check_size,
    create_encoder,
    find_grid,
    freeze_unreached,
    has_batch_norm,
    initialise_vit,
    on_meta,
    set_sincos_positions,
)
from litcam.lightning_modules.masked.hiding import find_hiding
from litcam.lightning_modules.masked.masking import (
    choose_cells,
    patchify,
    reproducible_noise,
    unpatchify,
    visible_map,
)
from litcam.lightning_modules.masked.reconstruction import (
    Reconstruction,
    at_least_float32,
    denormalise_cells,
    normalise_cells,
)
from litcam.lightning_modules.steps import GuardedSteps, run_seed
from litcam.lightning_modules.weights import load_weights
from litcam.lightning_modules.weights.saving import save_pretrained

__all__ = ["MAE"]

Batch = dict[str, Tensor] | tuple[Tensor, ...] | list[Tensor]


class MAE(GuardedSteps):
    """Pretrain a timm encoder by hiding cells of images and predicting their pixels.

    A ViT never gets the hidden patches (MAE, arXiv:2111.06377), a Swin gets a mask token for them
    (SimMIM, arXiv:2111.09886), a CNN is computed as if sparse (SparK, arXiv:2301.03580). A batch is
    a dict with ``image`` (batch, 3, height, width), normalised, and ``index`` (batch,) if known, or
    a sequence that starts with the images. Logged once an epoch: ``train/loss``, ``val/loss``, and
    of the hidden pixels ``val/psnr`` (decibels) and ``val/explained_variance`` (1 - squared error /
    variance), which compare across normalisations and mask ratios.

    Args:
        backbone: a timm model's name; the model is at ``.encoder``, unmodified, without a head.
        mask_ratio: share of the cells that is hidden.
        image_size: side of the images in pixels; by default the backbone's own.
        pretrained: start from timm's pretrained weights, downloaded once.
        weights: start from this file or folder instead, whoever made it; see `load_weights`.
        backbone_args: further arguments of ``timm.create_model``, such as ``patch_size``.
        decoder: ``unet`` reads the maps of a CNN's stages (SparK), ``transformer`` the last one
            alone; by default a UNet for a CNN, unless it gets a ``decoder_depth``.
        decoder_dim: width of the decoder; by default it is sized to the encoder.
        decoder_depth: transformer blocks; 0 is one linear layer, Swin's default.
        loss: ``l2`` (MAE) or ``l1`` (SimMIM), of the hidden pixels.
        norm_pix_loss: predict each cell normalised by its own mean and variance.
        learned_positions: train the position embedding of a ViT instead of sines and cosines.
        optimizer: any name of ``timm.optim.list_optimizers()``.
        optimizer_args: its own arguments; by default ``betas`` of 0.9 and 0.95 for AdamW.
        lr: learning rate for an effective batch of 256.
        scale_lr: scale it to the batch × accumulation × devices of the run.
        weight_decay: not applied to norms, biases, positions, and tokens but those of a ViT.
        weight_decay_end: where a cosine over the whole run takes it; by default it stays.
        warmup_epochs: linear warm-up, then cosine.
        warmup_lr_ratio: first over peak learning rate; by default one step's part of the warm-up.
        warmup_prefix: begin the cosine after the warm-up; timm's default is beneath it.
        min_lr_ratio: where the cosine ends, as a share of the peak.

    Raises:
        ValueError: if an argument is out of range, or the backbone unknown or of no known family.

    >>> mae = MAE("vit_tiny_patch16_224", image_size=64, decoder_dim=64, decoder_depth=1)
    >>> mae.num_cells, mae(torch.zeros(2, 3, 64, 64)).shape
    (16, torch.Size([]))
    """

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224",
        mask_ratio: float = 0.75,
        *,
        image_size: int | None = None,
        pretrained: bool = False,
        weights: str = "",
        backbone_args: dict[str, Any] | None = None,
        decoder: Literal["unet", "transformer"] | None = None,
        decoder_dim: int | None = None,
        decoder_depth: int | None = None,
        loss: Literal["l2", "l1"] = "l2",
        norm_pix_loss: bool = False,
        learned_positions: bool = False,
        optimizer: str = "adamw",
        optimizer_args: dict[str, Any] | None = None,
        lr: float = 1.5e-4,
        scale_lr: bool = True,
        weight_decay: float = 0.05,
        weight_decay_end: float | None = None,
        warmup_epochs: float = 40.0,
        warmup_lr_ratio: float | None = None,
        warmup_prefix: bool = True,
        min_lr_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        if optimizer_args is None and optimizer == "adamw":
            optimizer_args = {"betas": (0.9, 0.95)}
        self.save_hyperparameters()
        check_arguments("MAE", self.hparams)
        self.encoder, self.image_size = create_encoder(
            backbone, image_size, pretrained=pretrained and not weights, options=backbone_args or {}
        )
        if weights:
            load_weights(self.encoder, weights)
        pyramid = None if decoder is None and decoder_depth is None else decoder == "unet"
        hiding = find_hiding(self.encoder, backbone, pyramid=pyramid)
        self.grid, self.cell_size = find_grid(self.encoder, backbone, self.image_size)
        self.num_cells = self.grid[0] * self.grid[1]
        check_cells(self.num_cells, self.cell_size, mask_ratio)
        if not (pretrained or weights):
            initialise_vit(self.encoder)
            if not learned_positions:
                set_sincos_positions(self.encoder, self.grid)
        self.hiding = hiding(self.encoder, self.grid)
        freeze_unreached(self.encoder, self._encode_on_meta)
        encoder_on_meta = on_meta(self.encoder)
        self.decoder, self.decoder_share = create_decoder(
            lambda: self._encode_on_meta(encoder_on_meta),
            self.grid,
            self.cell_size,
            mask_ratio,
            dim=decoder_dim,
            depth=decoder_depth,
            num_prefix_tokens=getattr(self.encoder, "num_prefix_tokens", 0),
            shows_hidden=self.hiding.shows_hidden,
            layer_norm=not has_batch_norm(self.encoder),
        )
        # Metrics, not self.log's own mean; see Classifier.
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_psnr = PeakSignalNoiseRatio(data_range=1.0)
        self.val_explained_variance = R2Score(multioutput="variance_weighted")

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map images (batch, 3, height, width), normalised, to the loss.

        Args:
            images: of the size that the encoder was made for.
            noise: (batch, num_cells); the int(num_cells * (1 - mask_ratio)) cells of smallest noise
                stay visible. By default drawn from torch's generator.
        """
        return self._losses(*self._predict(images, self._choose(images, noise))).mean()

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Predict the hidden cells of images, and put them among the visible ones.

        Args:
            images: (batch, 3, height, width), normalised.
            noise: (batch, num_cells), as for the loss.
        """
        ids = self._choose(images, noise)
        predicted, target = self._predict(images, ids)
        pixels = self._in_pixels(predicted, target)
        error = (pixels[0] - pixels[1]).square().mean(dim=(1, 2, 3))
        if borrowed := bool(self.hparams["norm_pix_loss"]):
            predicted = denormalise_cells(predicted, target)
        places = rearrange(ids[1], "b n -> b n 1 1").expand_as(predicted)
        cells = patchify(at_least_float32(images), self.cell_size).scatter(1, places, predicted)
        hidden = ~visible_map(ids[0], self.grid)
        return Reconstruction(
            predicted=unpatchify(cells, self.grid),
            hidden=hidden.repeat_interleave(self.cell_size, 1).repeat_interleave(self.cell_size, 2),
            psnr=-10 * error.clamp_min(1e-12).log10(),
            borrowed=borrowed,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch. The masks follow from seed, epoch and image alone."""
        images = _images(batch)
        seeds = run_seed(), self.current_epoch
        noise = reproducible_noise(self._keys(batch, batch_idx), self.num_cells, *seeds)
        loss = self(images, noise)
        self.train_loss.update(loss.detach().expand(len(images)))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.watch(loss, batch, len(images))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update loss and metrics; an image has the same mask at every epoch."""
        images = _images(batch)
        noise = reproducible_noise(self._keys(batch, batch_idx), self.num_cells, 0)
        predicted, target = self._predict(images, self._choose(images, noise))
        self.val_loss.update(self._losses(predicted, target).mean(dim=1))
        pixels = self._in_pixels(predicted, target)
        self.val_psnr.update(*pixels)
        self.val_explained_variance.update(*(cells.flatten(0, 2) for cells in pixels))
        for name in ("loss", "psnr", "explained_variance"):
            metric = getattr(self, f"val_{name}")
            self.log(f"val/{name}", metric, prog_bar=name == "loss", on_step=False, on_epoch=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return optimiser and schedule; see `optim.configure`."""
        return optim.configure(self, self.trainer, optim.Recipe.of(self.hparams))

    def no_weight_decay(self) -> set[str]:
        """Name what is not decayed besides vectors: positions, and tokens but for a ViT's."""
        tokens = {name for name, _ in self.named_parameters() if name.endswith("mask_token")}
        inner: Any = getattr(self.encoder, "no_weight_decay", set)
        names = tokens | {f"encoder.{name}" for name in inner()}
        decayed = ("_token",) if self.hiding.decays_tokens else ()
        return {name for name in names if not name.endswith(decayed)}

    def on_fit_start(self) -> None:
        """Say what is hidden, and which share of the compute the decoder takes."""
        super().on_fit_start()
        hidden = self.num_cells - int(self.num_cells * (1 - self.hparams["mask_ratio"]))
        rank_zero_info(
            f"MAE hides {hidden} of {self.num_cells} cells of {self.cell_size}x{self.cell_size} "
            f"pixels; decoder ({self.decoder.describe()}): {self.decoder_share:.0%} of the compute"
        )

    def on_train_epoch_end(self) -> None:
        """Write encoder and decoder beside the checkpoints; see `save_pretrained`."""
        super().on_train_epoch_end()
        save_pretrained(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint enough on its own: no download to load it again."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] |= {"pretrained": False, "weights": ""}

    def _choose(self, images: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        check_size(images, self.image_size)
        if noise is None:
            noise = torch.rand(len(images), self.num_cells, device=images.device)
        return choose_cells(noise, self.hparams["mask_ratio"])

    def _predict(self, images: Tensor, ids: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return predicted and true pixels of hidden cells (batch, num_hidden, cell_size², 3)."""
        seen = self.hiding(self.encoder, images, *ids)
        predicted = at_least_float32(self.decoder(seen, *ids))
        predicted = rearrange(predicted, "b n (p c) -> b n p c", c=3)
        places = rearrange(ids[1], "b n -> b n 1 1")
        cells = patchify(at_least_float32(images), self.cell_size)
        return predicted, cells.take_along_dim(places, dim=1)

    def _losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every hidden cell (batch, num_hidden)."""
        if self.hparams["norm_pix_loss"]:
            target = normalise_cells(target)
        error = predicted - target
        error = error.square() if self.hparams["loss"] == "l2" else error.abs()
        return error.mean(dim=(2, 3))

    def _in_pixels(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Scale predicted and true cells to pixels in [0, 1], but for a common shift."""
        if self.hparams["norm_pix_loss"]:
            predicted = denormalise_cells(predicted, target)
        data = getattr(self._trainer, "datamodule", None)
        config: Any = self.encoder.pretrained_cfg
        std = predicted.new_tensor(getattr(data, "std", None) or config["std"])
        return predicted * std, target * std

    def _keys(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return a number for each image (batch,), another one on every process."""
        if isinstance(batch, dict) and "index" in batch:
            return batch["index"].long()
        first = (batch_idx * self.trainer.world_size + self.global_rank) << 20
        return torch.arange(len(_images(batch)), device=self.device) + first

    def _encode_on_meta(self, encoder: torch.nn.Module) -> Tensor | list[Tensor]:
        images = torch.zeros(2, 3, self.image_size, self.image_size, device="meta")
        ids = choose_cells(
            torch.zeros(2, self.num_cells, device="meta"), self.hparams["mask_ratio"]
        )
        seen: Tensor | list[Tensor] = on_meta(self.hiding)(encoder, images, *ids)
        return seen


def _images(batch: Batch) -> Tensor:
    return batch["image"] if isinstance(batch, dict) else batch[0]
