"""Whether a representation gets better, not only its loss: neighbours among validation images."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from litcam.callbacks.each_validation import EachValidation
from litcam.callbacks.notes import describe_failure, never_kills
from litcam.callbacks.validation.batch import Batch, Reading, find_labels
from litcam.callbacks.validation.beside import untouched
from litcam.callbacks.validation.chosen import ShownImages, find_loaders

TEMPERATURE = 0.07
CHUNK = 1024


class Neighbours(EachValidation):
    """Classifies each validation image by its neighbours among the others, and logs how often.

    The images are compared by the encoder's pooled output, and each of the nearest votes for its
    class with weight exp(cosine / 0.07), as in InstDisc (arXiv:1805.01978, section 3.4), where
    the neighbours are training images; here they are the other validation images (leave one out),
    which costs one forward of each and no pass over the training data. Nothing is trained for it
    and training stays bitwise the same. Logged as `val/knn_acc1`; compare it between epochs and
    runs of one dataset. Of several validation loaders the first is used.

    Args:
        num_neighbours: how many vote.
        num_images: how many images are used at most, spread evenly over the validation set.
        every_n_epochs: at every n-th validation only.
        network: dotted name of the encoder in the LightningModule; it maps images to pooled
            features `(batch, dim)`, as timm's models with `num_classes=0` do.

    Raises:
        ValueError: an argument is out of range, or (at the start of a run) there is no such
            encoder.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Neighbours()], logger=False)
    """

    def __init__(
        self,
        num_neighbours: int = 20,
        num_images: int = 10_000,
        every_n_epochs: int = 1,
        *,
        network: str = "encoder",
    ) -> None:
        for argument, value, least in (
            ("num_neighbours", num_neighbours, 1),
            ("num_images", num_images, 2),
        ):
            if value < least:
                raise ValueError(f"{argument} must be at least {least}, got {value}")
        self.num_neighbours, self.num_images = num_neighbours, num_images
        self.network = network
        super().__init__(every_n_epochs)

    def _forget(self) -> None:
        super()._forget()
        self._shown: ShownImages | None = None
        self._problem = ""
        self._forget_images()

    def _forget_images(self) -> None:
        self._seen: set[int] = set()
        self._features: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._indices: list[int] = []

    # The run

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses a module without the encoder. Not in `setup`, where it may be unfinished."""
        try:
            pl_module.get_submodule(self.network)
        except AttributeError:
            parts = ", ".join(name for name, _ in pl_module.named_children()) or "none"
            raise ValueError(
                f"Neighbours finds no network {self.network!r} in {type(pl_module).__name__}; "
                f"pass network=… to Neighbours, one of its parts: {parts}"
            ) from None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same where nothing is trained."""
        super().on_validation_start(trainer, pl_module)
        self.on_fit_start(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the last epoch's images."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._forget_images()

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
        """Keeps features and labels of the chosen images of a batch."""
        if self._problem or not self._active or dataloader_idx:
            return
        read = Reading().read(batch)
        if (images := read.images) is None:
            return
        positions, labels = self._choose(trainer, read, batch_idx), find_labels(batch)
        if not positions:
            return
        if labels is None:
            self._problem = "stops: the batch has no labels, which the neighbours are judged by"
            return
        rows = list(positions)
        with untouched(trainer, pl_module):
            features = _encode(pl_module.get_submodule(self.network), images[rows])
        self._seen |= set(positions.values())
        self._features.append(nn.functional.normalize(features, dim=1))
        self._labels.append(labels[rows].to(features.device))
        self._indices += positions.values()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gathers the features on every process and logs one number, the same on each."""
        if not self._active:
            return
        gathered = self._gather(trainer, pl_module.device)
        self._forget_images()
        if gathered is None:
            return
        features, labels = gathered
        if len(labels) < 2:
            return
        try:
            accuracy = leave_one_out(features, labels, self.num_neighbours)
        except RuntimeError as error:  # out of memory: the others are told at the next gathering
            self._problem, accuracy = describe_failure(error), float("nan")
        count, chance = len(labels), labels.unique(return_counts=True)[1].max() / len(labels)
        if trainer.is_global_zero:
            self._notes.tell(
                f"compares {count} validation images by {self.network}, "
                f"{min(self.num_neighbours, count - 1)} neighbours each, as val/knn_acc1; "
                f"the most frequent class is {chance:.1%} of them"
            )
        # Equal on every process: it is synchronised only because Lightning warns otherwise.
        pl_module.log("val/knn_acc1", accuracy, batch_size=1, sync_dist=True)

    @property
    def state_key(self) -> str:
        """Tells two such callbacks apart."""
        return self._generate_state_key(network=self.network)

    # Its parts

    def _give_up(self, error: Exception) -> None:
        self._problem = describe_failure(error)

    def _choose(self, trainer: pl.Trainer, batch: Batch, batch_idx: int) -> dict[int, int]:
        if self._shown is None:
            loaders, batches = find_loaders(trainer)
            wanted = (), self.num_images
            self._shown = ShownImages.choose(trainer, loaders[0], batches[0], *wanted)
        positions = self._shown.find(batch, batch_idx, self._seen)
        if self._shown.by_index:
            return positions
        # Every process counts from zero: each takes its share of the first that pass.
        share = max(self.num_images // trainer.world_size, 1)
        return {row: index for row, index in positions.items() if index < share}

    def _gather(self, trainer: pl.Trainer, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Features `(num_images, dim)` and labels of every process, in the order of the dataset.

        Nothing if any process had trouble: all of them stop together, for the collectives' sake.
        """
        count = len(self._indices)
        dim = self._features[0].shape[1] if count else 0
        by_index = self._shown is not None and self._shown.by_index
        told = torch.tensor([count, dim, bool(self._problem)], device=device)
        counts, dims, troubles = trainer.strategy.all_gather(told).reshape(-1, 3).T.tolist()
        if any(troubles) or sum(counts) < 2:
            self._off = True
            other = "another process had trouble" if any(troubles) else "no two images were seen"
            self._notes.warn([self._problem or f"stops: {other}"])
            return None
        most, dim = max(counts), max(dims)
        features = torch.zeros(most, dim, device=device)
        numbers = torch.zeros(most, 2, dtype=torch.long, device=device)
        if count:
            features[:count] = torch.cat(self._features)
            numbers[:count, 0] = torch.cat(self._labels)
            numbers[:count, 1] = torch.tensor(self._indices, device=device)
        features = trainer.strategy.all_gather(features).reshape(-1, dim)
        numbers = trainer.strategy.all_gather(numbers).reshape(-1, 2)
        places = torch.arange(most, device=device)
        real = torch.cat([places < num for num in counts]).nonzero().squeeze(1)
        labels, indices = numbers[real].T
        order = indices.argsort(stable=True)
        if by_index:  # a sampler may have repeated some so that all processes have as many
            first = torch.ones_like(order, dtype=torch.bool)
            first[1:] = indices[order].diff() != 0
            order = order[first]
        features, labels = features[real[order]], labels[order]
        # What has no label, or several, has no class that its neighbours could vote for.
        return features[labels >= 0], labels[labels >= 0]


def leave_one_out(features: Tensor, labels: Tensor, num_neighbours: int) -> float:
    """How often the weighted vote of an image's neighbours is its own class.

    Args:
        features: `(num_images, dim)`, each of length 1.
        labels: `(num_images,)` class numbers.
        num_neighbours: how many of the other images vote.

    >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> leave_one_out(features, torch.tensor([0, 0, 1, 0]), 1)
    0.5
    """
    classes, targets = labels.unique(return_inverse=True)
    right = 0
    for start in range(0, len(features), CHUNK):
        chunk = features[start : start + CHUNK]
        cosines = chunk @ features.T
        rows = torch.arange(len(chunk), device=features.device)
        cosines[rows, start + rows] = -torch.inf
        best = cosines.topk(min(num_neighbours, len(features) - 1), dim=1)
        votes = torch.zeros(len(chunk), len(classes), device=features.device)
        votes.scatter_add_(1, targets[best.indices], (best.values / TEMPERATURE).exp())
        right += int((votes.argmax(1) == targets[start : start + CHUNK]).sum())
    return right / len(features)


def _encode(network: nn.Module, images: Tensor) -> Tensor:
    """Features `(batch, dim)` in float32.

    Raises:
        ValueError: the network gives none.
    """
    features = network(images)
    fits = isinstance(features, Tensor) and features.ndim == 2 and features.shape[1]
    if not fits or len(features) != len(images):
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"the network gives {got} for {len(images)} images instead of pooled features "
            "(batch, dim)"
        )
    return features.float()
