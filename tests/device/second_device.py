"""A second device on a machine without a GPU.

Tensors on `twin` live in the CPU's memory, but say that they are elsewhere: what a GPU would refuse
(mixing them with CPU tensors of one dimension or more) raises, and what would make the CPU wait
for a GPU (`.item()`, `nonzero`, boolean indexing, a copy to the CPU) is counted, with its line.
It does not show speed, streams, kernels, memory of a GPU, or numerics of its own.

Needs a C++ compiler and ninja; the first import compiles `second_device.cpp` in about a minute.

    import second_device
    with second_device.Watch() as watch:
        network.to("twin")(images.to("twin"))
    print(watch.syncs, watch.copies)
"""

import collections
import traceback
import types
from pathlib import Path

import torch
import torch.utils.cpp_extension
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import litcam.callbacks

NAME = "twin"
OURS = str(Path(litcam.callbacks.__file__).parents[1])
torch.utils.rename_privateuse1_backend(NAME)
torch.utils.cpp_extension.load(
    name="second_device",
    sources=[str(Path(__file__).with_suffix(".cpp"))],
    extra_cflags=["-O0"],
    is_python_module=False,
)


def _make_module() -> types.ModuleType:
    """What `torch.cuda` is to CUDA: just enough for PyTorch and Lightning to go on."""
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.set_device = module.synchronize = module._lazy_init = lambda *args: None
    module.manual_seed = module.manual_seed_all = lambda seed: None
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    module.get_rng_state = lambda device=NAME: torch.get_rng_state()
    module.set_rng_state = lambda state, device=NAME: torch.set_rng_state(state)
    module.memory_allocated = lambda *args: 0
    return module


torch._register_device_module(NAME, _make_module())
torch.utils.generate_methods_for_privateuse1_backend()

aten = torch.ops.aten
SYNCS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten.unique_consecutive.default: "unique",
    aten._unique2.default: "unique",
}
COPIES = {
    aten._to_copy.default,
    aten.copy_.default,
    aten._copy_from.default,
    aten._copy_from_and_resize.default,
}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class Watch(TorchDispatchMode):
    """Counts what a GPU would wait for, and refuses what it would refuse.

    Attributes:
        syncs: waits for the device, by kind and line.
        copies: copies between the devices, by direction and line.
        ops: operators that ran.
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs: collections.Counter[str] = collections.Counter()
        self.copies: collections.Counter[str] = collections.Counter()
        self.ops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.ops += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [t for t in tensors if t.device.type == NAME]
        here = [t for t in tensors if t.device.type == "cpu" and t.dim() > 0]
        # As CUDA has it: a tensor there may be indexed by one here.
        indexes = func in INDEXING and args[0].device.type == NAME
        if there and here and func not in COPIES and not indexes:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {func} at {_line()}"
            )
        if there and func in SYNCS:
            self.syncs[f"{SYNCS[func]} {_line()}"] += 1
        if there and func is aten.index.Tensor and any(_is_mask(index) for index in args[1]):
            self.syncs[f"boolean index {_line()}"] += 1
        if func is aten._to_copy.default and kwargs.get("device") is not None:
            if not kwargs.get("non_blocking"):  # nobody waits for it
                self._count_copy(args[0].device.type, torch.device(kwargs["device"]).type)
        elif func is aten.copy_.default:
            self._count_copy(args[1].device.type, args[0].device.type)
        return func(*args, **kwargs)

    def _count_copy(self, source: str, target: str) -> None:
        if source != target:
            self.copies[f"{source} to {target} {_line()}"] += 1


def _is_mask(index: object) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _line() -> str:
    """The innermost line of litcam, else of whoever is not PyTorch."""
    stack = traceback.extract_stack()
    frames = [f for f in stack if "/torch/" not in f.filename and f.filename != __file__]
    frame = next((f for f in reversed(frames) if f.filename.startswith(OURS)), frames[-1])
    return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"
