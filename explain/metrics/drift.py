"""How much the maps of the same images change from one epoch to the next."""

from math import prod
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from litcam.explain.metrics.image_mean import ImageMean
from litcam.explain.metrics.regions import resize_maps, unit_maps


class Drift(ImageMean):
    """One minus Pearson's correlation of an image's maps at consecutive epochs; in [0, 2].

    0 is the same map up to its scale, 1 an unrelated one; steadier is lower, neither is better.
    No other package has it; the correlation is checked against NumPy's. An epoch ends with
    `reset()`. In the first one there is nothing to compare: `compute` gives NaN and `has_value`
    is False, so do not log it. A map that is flat in either epoch has no correlation: skipped.

    Memory is the rank's own, on the CPU, at the size of the first maps: an image that moves to
    another rank is not compared. It is no state: after a resumed run the first epoch has no value.

    Args:
        max_images: how many images to follow on each rank, the first that come; at a 7 x 7 grid
            1000 take 0.1 MB, as heatmaps of 224 x 224 pixels 100 MB.
        kwargs: torchmetrics' own options.

    Raises:
        ValueError: `max_images` is below 1.

    >>> drift = Drift()
    >>> drift.update(torch.eye(3)[None], torch.tensor([7]))
    >>> drift.has_value
    False
    >>> drift.reset()
    >>> drift.update(2 * torch.eye(3)[None], torch.tensor([7]))
    >>> round(drift.compute().item(), 4)
    0.0
    """

    def __init__(self, max_images: int = 1000, **kwargs: Any) -> None:
        if max_images < 1:
            raise ValueError(f"max_images must be 1 or more, got {max_images}")
        super().__init__("drift", **kwargs)
        self.max_images = self._room = max_images
        self._before: tuple[Tensor, Tensor] | None = None
        self._now: list[tuple[Tensor, Tensor]] = []
        self._grid: tuple[int, int] | None = None

    def update(self, maps: Tensor, index: Tensor) -> None:
        """Adds maps `(batch, height, width)` of the images at `index` `(batch,)` of the dataset.

        Raises:
            ValueError: `index` is not one number an image.
        """
        units = unit_maps(maps)
        if index.shape != units.shape[:1]:
            raise ValueError(
                f"index must be ({len(units)},), one number a map, got {tuple(index.shape)}"
            )
        self._grid = self._grid or (units.shape[1], units.shape[2])
        units = resize_maps(units, self._grid)
        index = index.detach().cpu()
        known, rows = self._find(index)
        if self._before is not None:
            before = self._before[1][rows[known]].to(units.device).float()
            values, defined = _correlate(before, units[known.to(units.device)])
            self._add(defined, drift=1 - values)
        fresh = ~known & ((~known).cumsum(0) <= self._room)
        self._room -= int(fresh.sum())
        keep = known | fresh
        # Half precision of a map in [0, 1] moves a correlation by about 1e-7.
        self._now.append((index[keep], units[keep.to(units.device)].to("cpu", torch.float16)))

    def reset(self) -> None:
        """Ends the epoch: its maps are what the next one's are compared with."""
        super().reset()
        if not self._now:  # Reset twice, as at the end of an epoch and the start of the next.
            return
        index, maps = (torch.cat(parts) for parts in zip(*self._now, strict=True))
        order = index.argsort(stable=True)
        self._before, self._now = (index[order], maps[order]), []
        self._room = self.max_images - len(index)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: torchmetrics resets a metric inside it, which ends the epoch here."""
        raise RuntimeError("Drift compares whole epochs: call its update(), not the metric itself")

    def _find(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Which of `index` the last epoch had, and in which row."""
        if self._before is None or not len(self._before[0]):
            return torch.zeros_like(index, dtype=torch.bool), index
        seen = self._before[0]
        rows = torch.searchsorted(seen, index).clamp(max=len(seen) - 1)
        return seen[rows] == index, rows


def _correlate(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson's correlation of maps `(batch, height, width)`, and where it is defined."""
    a, b = (rearrange(maps, "batch h w -> batch (h w)") for maps in (first, second))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    # Half precision makes a flat map no flatter, and rounding of the mean no rougher than this.
    floor = 1e-4 * prod(first.shape[1:]) ** 0.5
    defined = (a.norm(dim=1) > floor) & (b.norm(dim=1) > floor)
    product = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return product.clamp(-1, 1), defined
