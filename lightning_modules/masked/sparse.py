"""Forward hooks that compute a dense CNN as if its feature maps held visible cells only.

The idea is SparK's (arXiv:2301.03580): zeros in hidden cells, put back after every layer that would
fill them, and statistics over visible positions. There it takes a network of converted modules;
here the network stays as it is. Two kinds of layers:

* those that look around or add a bias (convolution, pooling, a linear layer on channels-last maps)
  run densely, and zeros are put back behind them
* those that take statistics over positions (normalisation, squeeze-and-excitation) get a map of the
  visible positions alone, so that their running statistics are right as well
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from einops import rearrange
from timm.layers import BlurPool2d, EcaModule, EffectiveSEModule, GlobalContext, SEModule
from timm.layers.grn import GlobalResponseNorm
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from litcam.lightning_modules.masked.masking import enlarge

__all__ = ["Hook", "VisiblePositions", "hooked", "is_convolutional", "sparse_hooks"]

Hook = tuple[str, nn.Module, Callable[..., Any]]

_FILLS = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, BlurPool2d)
_EXCITES = (SEModule, EffectiveSEModule, SqueezeExcite, EcaModule, GlobalContext)
# Their names in timm's attention layers; a convolution is never called so.
_ATTENTION = {"qkv", "q", "kv", "to_q", "to_qkv", "query", "q_proj"}


@contextmanager
def hooked(hooks: Iterable[Hook]) -> Iterator[None]:
    """Put hooks ``before`` or ``after`` modules, and take them off whatever happens."""
    handles = []
    try:
        for place, module, hook in hooks:
            register: Any = (
                module.register_forward_pre_hook
                if place == "before"
                else module.register_forward_hook
            )
            handles.append(register(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_convolutional(encoder: nn.Module) -> bool:
    """Whether a timm model consists of layers that `sparse_hooks` knows."""
    names = {name.rpartition(".")[2] for name, _ in encoder.named_modules()}
    spatial = any(
        isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
        for module in encoder.modules()
    )
    return spatial and not names & _ATTENTION and not hasattr(encoder, "patch_embed")


def sparse_hooks(encoder: nn.Module, visible: Tensor, ids_keep: Tensor) -> Iterator[Hook]:
    """Make the hooks for one forward.

    Args:
        encoder: a CNN.
        visible: (batch, rows, columns), True in visible cells.
        ids_keep: (batch, num_visible), the same as numbers.
    """
    maps: dict[Any, Tensor] = {}

    def clear(channels: int, features: Tensor) -> Tensor:
        """Put zeros back into hidden cells; a vector for each image has none."""
        size = features.shape[2:] if channels == 1 else features.shape[1:3]
        if features.ndim != 4 or size == (1, 1):
            return features
        key = (channels, size, features.dtype)
        if key not in maps:
            _check(size, visible.shape[1:])
            maps[key] = enlarge(visible, size).unsqueeze(channels).to(features.dtype)
        return features * maps[key]

    for module, kind, channels in _layers(encoder):
        if kind == "fills":
            yield "after", module, lambda m, args, out, c=channels: clear(c, out)
        else:
            places = VisiblePositions((visible.shape[1], visible.shape[2]), ids_keep, channels)
            yield "before", module, lambda m, args, p=places: (p.take(args[0]), *args[1:])
            yield "after", module, lambda m, args, out, p=places: p.put_back(out)


class VisiblePositions:
    """Visible positions of feature maps, one below the other, and back.

    Args:
        grid: rows and columns of cells; the maps divide into them.
        ids_keep: (batch, num_visible) visible cells.
        channels: the channels' axis in the maps, 1 or -1.
    """

    def __init__(self, grid: tuple[int, int], ids_keep: Tensor, channels: int = 1) -> None:
        self._grid, self._ids = grid, rearrange(ids_keep, "b k -> b k 1 1 1")
        self._map = "b c (r s) (q t)" if channels == 1 else "b (r s) (q t) c"
        self._column = "b c (k s) t" if channels == 1 else "b (k s) t c"
        self._cells = "b (r q) s t c"
        self._size = slice(2, 4) if channels == 1 else slice(1, 3)

    def take(self, features: Tensor) -> Tensor:
        """Take visible cells out of maps: (batch, channels, num_visible * side, side)."""
        rows, columns = self._grid
        _check(features.shape[self._size], self._grid)
        cells = rearrange(features, f"{self._map} -> {self._cells}", r=rows, q=columns)
        seen = cells.take_along_dim(self._ids, dim=1)
        # Contiguous: torch 2.15 on CPU crashes in the backward behind some of einops' views.
        return rearrange(seen, f"b k s t c -> {self._column}").contiguous()

    def put_back(self, seen: Tensor) -> Tensor:
        """Put what `take` took into maps whose hidden cells are zero."""
        rows, columns = self._grid
        seen = rearrange(seen, f"{self._column} -> b k s t c", k=self._ids.shape[1])
        empty = seen.new_zeros(len(seen), rows * columns, *seen.shape[2:])
        cells = empty.scatter(1, self._ids.expand_as(seen), seen)
        return rearrange(cells, f"{self._cells} -> {self._map}", r=rows, q=columns).contiguous()


def _layers(encoder: nn.Module) -> Iterator[tuple[nn.Module, str, int]]:
    """Sort layers by what they do to hidden cells, each with the place of its channels."""
    todo = [encoder]
    while todo:
        module = todo.pop()
        kind = type(module).__name__
        if isinstance(module, _FILLS):
            yield module, "fills", -1 if isinstance(module, nn.Linear) else 1
        elif isinstance(module, _EXCITES):
            yield module, "counts", 1
        elif isinstance(module, GlobalResponseNorm):
            yield module, "counts", module.channel_dim
        elif any(isinstance(inner, _FILLS) for inner in module.modules()):  # timm's ConvNormAct
            todo += module.children()
        elif "LayerNorm" in kind or "RmsNorm" in kind:  # position by position
            yield module, "fills", 1 if "2d" in kind else -1
        elif "Norm" in kind:
            yield module, "counts", 1
        else:
            todo += module.children()


def _check(size: Sequence[int], grid: Sequence[int]) -> None:
    if size[0] % grid[0] or size[1] % grid[1]:
        raise ValueError(
            f"MAE: the CNN has a feature map of {size[0]}x{size[1]} that does not divide into "
            f"{grid[0]}x{grid[1]} cells (a convolution without padding); use another backbone"
        )
