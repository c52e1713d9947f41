"""A forward beside training and validation that leaves both as they were."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from litcam.callbacks.validation.batch import find_images
from litcam.explain.forward.untouched import evaluating


@contextmanager
def untouched(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Evaluation mode in the run's own precision; then every mode and random state as before."""
    precision = trainer.precision_plugin.forward_context()
    with evaluating(module, module.device), torch.no_grad(), precision:
        yield


def fetch_images(trainer: pl.Trainer, loader: Any, indices: Sequence[int]) -> dict[int, Tensor]:
    """Images of a validation loader, past its order and workers, as validation would get them.

    Args:
        trainer: its stage is that of validation meanwhile, so that nothing is augmented.
        loader: its dataset and `collate_fn` are used.
        indices: places in the dataset below any `Subset`.

    Returns:
        Index to image `(channels, height, width)`, on the CPU; none where the dataset has no order.
    """
    dataset = getattr(loader, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if not indices or dataset is None or isinstance(dataset, IterableDataset):
        return {}
    batches: DataLoader[Any] = DataLoader(
        Subset(dataset, indices),
        getattr(loader, "batch_size", None) or 1,
        collate_fn=getattr(loader, "collate_fn", None),
        generator=torch.Generator(),  # else the global one would be read for a seed
    )
    stage, found = trainer.state.stage, list[Tensor]()
    trainer.state.stage = RunningStage.VALIDATING
    try:
        for batch in batches:
            batch = trainer.precision_plugin.convert_input(batch)
            images = find_images(trainer.strategy.batch_to_device(batch))
            found += [] if images is None else list(images.cpu())
    finally:
        trainer.state.stage = stage
    return dict(zip(indices, found, strict=True))


def takes_iterator(trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Whether the step takes its batches itself, so that nobody else knows which."""
    step = module.test_step if trainer.testing else module.validation_step
    return "dataloader_iter" in signature(step).parameters


def whole_weights(trainer: pl.Trainer) -> AbstractContextManager[None]:
    """The whole network on each process meanwhile, where each has but a part. All come here."""
    held: AbstractContextManager[None] = getattr(trainer.strategy, "whole_weights", nullcontext)()
    return held


def find_sharding(trainer: pl.Trainer) -> str:
    """The strategy under which one process alone has no whole network, or an empty line."""
    strategy = type(trainer.strategy).__name__
    sharded = any(kind in strategy for kind in ("FSDP", "DeepSpeed", "ModelParallel"))
    return strategy if sharded else ""
