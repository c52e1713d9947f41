"""Each process keeps a part of every weight, its gradient and its optimiser state: FSDP2."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _NormBase

from litcam.lightning_modules.parallel.sharding import (
    divide,
    find_units,
    make_whole,
    own_tensor,
    whole_state,
)
from litcam.lightning_modules.parallel.sync_batchnorm import keep_activations

__all__ = ["FullyShardedStrategy"]


class FullyShardedStrategy(DDPStrategy):
    """PyTorch's ``fully_shard`` of any LightningModule: ``Trainer(strategy="fsdp2")``.

    In training the weights of one block at a time are whole; between steps a process holds its
    part, and its part of gradients and optimiser state. For validation, test and prediction the
    weights are gathered once and whole on every process until the end: then no forward waits for
    another process, so that processes may have different numbers of batches, and callbacks run the
    network, and gradients through it, as they like.

    Memory, in bytes a parameter: 16 divided by the number of processes in training with AdamW, and
    4 more in validation. Under ``bf16-mixed`` autograd also keeps autocast's copies from a forward
    to its backward, 2 more, but for blocks with gradient checkpointing.

    Running means of BatchNorm are those of the first process, as in DDP; ``sync_batchnorm`` works
    as there.

    A checkpoint is one file and that of any other strategy: it is read by one process or by more.
    Works on CPUs too. Every process makes the whole network before it is divided.

    Args:
        **kwargs: those of `lightning.pytorch.strategies.DDPStrategy` that are not of the wrapper.

    Raises:
        ValueError: at the start of a run, with weight averaging, ``precision="16-mixed"``,
            ``sync_batchnorm`` on CPUs, or a loader without a batch for one of the processes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> Trainer(accelerator="cpu", devices=2, strategy="fsdp2", logger=False).world_size
        2
    """

    def setup(self, trainer: pl.Trainer) -> None:
        """Divides the weights, after what cannot work was refused."""
        fitting = trainer.state.fn == "fit"
        if fitting:
            self._refuse(trainer)
        self._resting: list[tuple[dict[int, Any], int, Any]] = []
        keep_activations(self)  # and the layers themselves, to which the parts belong
        if fitting or not isinstance(self.lightning_module, FSDPModule):
            super().setup(trainer)
            return
        # It was divided in a fit before, and is where it belongs.
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.setup_precision_plugin()

    def configure_ddp(self) -> None:
        """Divides the weights instead of wrapping the module."""
        module = self.lightning_module
        assert module is not None
        if not isinstance(module, FSDPModule):
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), 0)
            mesh = init_device_mesh(self.root_device.type, (self.world_size,))
            units = find_units(module)
            for unit in units:
                unit.register_forward_hook(own_tensor)
                fully_shard(unit, mesh=mesh)
            fully_shard(module, mesh=mesh)
            register_fsdp_forward_method(module, "training_step")
            for part in self._units():  # for whoever tells of them, or looks for a norm by its name
                type(part).__name__ = type(part).__mro__[2].__name__
            size = sum(p.numel() * p.element_size() for p in module.parameters()) / 2**20
            rank_zero_info(
                f"fsdp2 divides {len(units)} blocks and the rest among {self.world_size} "
                f"processes; in validation each holds the whole weights ({size:.0f} MiB)"
            )
        self._divide()
        self.model = module

    def process_dataloader(self, dataloader: Any) -> Any:
        """Refuses a loader that has batches for some processes only.

        A process without a batch passes a validation over, and the others would wait for it.

        Raises:
            ValueError: on every process.
        """
        assert self.lightning_module is not None
        if self.world_size > 1 and self.lightning_module.trainer.state.fn == "fit":
            here = int(sized_len(dataloader) != 0)
            told = torch.tensor([here, -here], device=self.root_device)
            every, some = self.reduce(told, reduce_op="min").tolist()
            if some and not every:
                raise ValueError(
                    "a loader has batches for some processes only, and under strategy fsdp2 those "
                    "would wait for the others: give it a batch for every process, or train with "
                    "--trainer trainer/ddp.yaml"
                )
        return super().process_dataloader(dataloader)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """One step, with the running statistics of the first process, as in DDP."""
        self._share_statistics()
        return super().training_step(*args, **kwargs)

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Every process has the whole network meanwhile, and runs it on its own. A collective."""
        before = bool(self._resting)
        self._gather()
        try:
            yield
        finally:
            if not before:
                self._divide()

    def on_validation_start(self) -> None:
        """Gathers the weights."""
        self._gather()

    def on_validation_end(self) -> None:
        """Divides them again."""
        self._divide()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    # Checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Weights and buffers, whole, on rank zero; nothing elsewhere. A collective."""
        assert self.lightning_module is not None
        state = whole_state(self.lightning_module, keep=self.is_global_zero)
        if self._resting:  # asking for the state has divided the weights
            self._gather()
        return state

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """An optimiser's state, whole, on rank zero. A collective."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return dict(apply_to_collection(state, DTensor, make_whole, keep=self.is_global_zero))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Takes this process's part of the weights of a checkpoint."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: divide(v, own.get(name)) for name, v in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes this process's part of the optimisers' states of a checkpoint."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            owners = dict(zip(numbers, parameters, strict=False))
            divided = {
                number: {name: divide(value, owners.get(number)) for name, value in kept.items()}
                for number, kept in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": divided})

    def teardown(self) -> None:
        """Leaves the parts where they are: a mesh of GPUs has no tensors on a CPU."""
        module, self._lightning_module = self._lightning_module, None
        if module is not None and self._layer_sync is not None:
            self._layer_sync.revert(module)
        optimizers, self.optimizers = self.optimizers, []
        try:
            super().teardown()
        finally:
            self._lightning_module, self.optimizers = module, optimizers

    # Its parts

    def _refuse(self, trainer: pl.Trainer) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(each, WeightAveraging) for each in callbacks):
            raise ValueError(
                "weight averaging (EMA) keeps a whole network, which strategy fsdp2 divides: leave "
                "it out of trainer.callbacks, or train with --trainer trainer/ddp.yaml"
            )
        if trainer.precision == "16-mixed":
            raise ValueError(
                "precision 16-mixed does not work under strategy fsdp2, where a process sees only "
                "its own part overflow: train with --trainer.precision bf16-mixed"
            )
        if self._layer_sync is not None and self.root_device.type == "cpu" and self._statistics():
            raise ValueError(
                "sync_batchnorm=True needs GPUs, and this network has BatchNorm: train on CPUs "
                "with --trainer.sync_batchnorm false"
            )

    def _gather(self) -> None:
        """Makes weights whole, and keeps PyTorch's hooks from dividing them."""
        # Else the first gathering would make tensors that only inference mode may use.
        with torch.inference_mode(False), torch.no_grad():
            for unit in self._units():
                unit.unshard()
        if not self._resting:
            self._rest()
        self._share_statistics()

    def _divide(self) -> None:
        for hooks, number, hook in self._resting:
            hooks[number] = hook
        self._resting = []
        for unit in self._units():
            unit.reshard()

    def _units(self) -> list[FSDPModule]:
        assert self.lightning_module is not None
        return [part for part in self.lightning_module.modules() if isinstance(part, FSDPModule)]

    def _rest(self) -> None:
        units: list[Any] = self._units()
        for hooks in (hooks for u in units for hooks in (u._forward_pre_hooks, u._forward_hooks)):
            for number, hook in hooks.items():
                if getattr(hook, "__module__", "").startswith("torch.distributed.fsdp."):
                    self._resting.append((hooks, number, hook))
                    hooks[number] = _do_nothing

    @torch.no_grad()
    def _share_statistics(self) -> None:
        """Has every process the running means and variances of the first."""
        buffers = self._statistics()
        if self.world_size > 1 and buffers:
            together = torch.cat([buffer.float().flatten() for buffer in buffers])
            dist.broadcast(together, 0)
            parts = together.split([buffer.numel() for buffer in buffers])
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.copy_(part.view_as(buffer))

    def _statistics(self) -> list[Tensor]:
        """Running means and variances that are not over all processes already."""
        assert self.lightning_module is not None
        layers = [part for part in self.lightning_module.modules() if isinstance(part, _NormBase)]
        own = [layer for layer in layers if not isinstance(layer, nn.SyncBatchNorm)]
        return [b for layer in own for b in layer.buffers(recurse=False) if b.is_floating_point()]


def _do_nothing(*args: Any) -> None:
    return None


if "fsdp2" not in StrategyRegistry:
    about = "PyTorch's fully_shard, one file for a checkpoint, whole weights in validation"
    StrategyRegistry.register("fsdp2", FullyShardedStrategy, description=about)
