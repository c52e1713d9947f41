"""LayerCAM over several layers: fine edges of the shallow ones, the object of the deep ones."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from litcam.explain.forward.untouched import ours
from litcam.explain.layers.layout import Layout, TargetLayer, find_layout, find_module
from litcam.explain.methods.formulas import layercam

GAMMA = 2.0


class SeveralLayers:
    """LayerCAM's maps of several layers, fused at the finest one's grid.

    Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE
    Transactions on Image Processing 2021, https://doi.org/10.1109/TIP.2021.3089943: each map by
    `tanh(2 * map / max(map))`, and of all of them the maximum. The paper scales so the maps of
    VGG's first three stages only; which layers are shallow is not known here, and all are scaled,
    as in torch-cam.

    Args:
        network: holds the layers.
        layers: dotted names or modules.

    Raises:
        ValueError: there is no such layer; the message offers close matches.
    """

    answers_alone = False

    def __init__(self, network: nn.Module, layers: Sequence[str | nn.Module]) -> None:
        self._network = network
        self._layers = dict(find_module(network, layer) for layer in layers)
        self.release()

    def release(self) -> None:
        """Lets what was kept go."""
        self._kept: dict[str, Tensor] = {}
        self._layouts: dict[str, Layout | None] = {}

    @contextmanager
    def watching(self, images: Tensor) -> Iterator[None]:
        """Keeps what each layer makes in the forward of these images."""
        self.release()
        with ExitStack() as stack:
            for name, module in self._layers.items():
                keep = ours(partial(self._keep, name, images.shape))
                stack.callback(module.register_forward_hook(keep).remove)
            yield

    def find_problem(self, logits: Tensor, layer: TargetLayer) -> str:
        """Why there are no maps, or an empty line."""
        for name in self._layers:
            if name not in self._kept:
                return f"layer {name} was not called once, with a tensor as its output"
            if self._layouts[name] is None:
                shape = tuple(self._kept[name].shape)
                return f"layer {name} gives {shape}: no grid over the images"
        return ""

    def made_at(self, layer: TargetLayer) -> TargetLayer:
        """All layers, at the finest grid."""
        layouts = [layout for layout in self._layouts.values() if layout is not None]
        finest = max(layouts, key=lambda layout: layout.grid)
        return TargetLayer(" + ".join(self._layers), layer.module, finest, "as asked for")

    def explain(self, logits: Tensor, classes: Tensor, layer: TargetLayer) -> Tensor:
        """Maps `(batch, height, width)` of one class an image, in [0, 1)."""
        ones = torch.zeros_like(logits).scatter_(1, classes[:, None], 1.0)
        kept = list(self._kept.values())
        gradients = torch.autograd.grad(logits, kept, ones, retain_graph=True)
        size = self.made_at(layer).grid
        fused = []
        for layout, output, gradient in zip(self._layouts.values(), kept, gradients, strict=True):
            assert layout is not None
            to_maps = layout.to_maps
            maps = layercam(to_maps(output.detach()).float(), to_maps(gradient).float()).relu_()
            highest = maps.amax((1, 2), keepdim=True)
            scaled = (GAMMA * maps / highest.where(highest > 0, 1.0)).tanh_()
            large = F.interpolate(scaled[:, None], size, mode="bilinear", align_corners=False)
            fused.append(rearrange(large, "b 1 h w -> b h w"))
        return torch.stack(fused).amax(0)

    def _keep(
        self, name: str, images: torch.Size, module: nn.Module, args: Any, output: Any
    ) -> Tensor | None:
        if not isinstance(output, Tensor) or name in self._kept:
            self._layouts[name] = None
            return None
        self._layouts[name] = find_layout(output.shape, images, self._network, module)
        torch.set_grad_enabled(True)
        self._kept[name] = output if output.requires_grad else output.detach().requires_grad_()
        return self._kept[name].clone()
