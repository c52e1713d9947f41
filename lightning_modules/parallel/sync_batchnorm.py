"""BatchNorm over all processes for timm's networks, whose BatchNorm layers also activate."""

from lightning.pytorch.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from lightning.pytorch.strategies import Strategy
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["TimmSyncBatchNorm", "keep_activations"]


class TimmSyncBatchNorm(LayerSync):
    """What ``Trainer(sync_batchnorm=True)`` does, without taking the activations away.

    Lightning asks `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, which puts a plain layer in the
    place of timm's ``BatchNormAct2d`` and so deletes the activations of MobileNetV3, EfficientNet,
    RegNet and many more. Here every layer stays the object it is, with its hooks, and only its
    class changes, there and back.
    """

    def __init__(self) -> None:
        self._classes: dict[nn.Module, type[nn.Module]] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Makes the BatchNorm layers of a model compute their statistics over all processes.

        Raises:
            ValueError: If a layer is of a class that has no counterpart.
        """
        synced = (nn.SyncBatchNorm, SyncBatchNormAct)
        classes = {
            layer: _counterpart(layer, name)
            for name, layer in model.named_modules()
            if isinstance(layer, _BatchNorm) and not isinstance(layer, synced)
        }
        for layer, counterpart in classes.items():
            self._classes[layer] = type(layer)
            layer.__class__ = counterpart  # type: ignore[assignment]
            layer.process_group = None  # type: ignore[assignment]  # all processes
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Makes them again what they were."""
        for layer, before in self._classes.items():
            layer.__class__ = before
            del layer.process_group
        self._classes.clear()
        return model


def _counterpart(layer: nn.Module, name: str) -> type[nn.Module]:
    kind = type(layer)
    if kind.forward is BatchNormAct2d.forward:
        return SyncBatchNormAct
    if kind.forward is _BatchNorm.forward:
        return nn.SyncBatchNorm
    raise ValueError(
        f"sync_batchnorm has no counterpart for {kind.__name__} at {name!r}; "
        "train with --trainer.sync_batchnorm false"
    )


def keep_activations(strategy: Strategy) -> None:
    """Has a strategy with ``sync_batchnorm=True`` convert as `TimmSyncBatchNorm` does."""
    if type(getattr(strategy, "_layer_sync", None)) is TorchSyncBatchNorm:
        strategy._layer_sync = TimmSyncBatchNorm()  # type: ignore[attr-defined]
