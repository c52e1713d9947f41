"""How much the maps of the same images change from one epoch to the next."""

from math import prod
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from litcam.explain.metrics.image_mean import ImageMean
from litcam.explain.metrics.regions import Maps


class MapMemory:
    """Remembers maps by the images' places in the dataset, until the same images come again.

    It is the process's own, and no part of a checkpoint: an image that moves to another process is
    not known there, nor is any in the first epoch after a resume. It lies on the maps' device and
    lets nothing wait for that device before the end of an epoch.

    Args:
        max_images: how many images to remember, the first that come; at a 7 x 7 grid 1000 take
            0.1 MB, as heatmaps of 224 x 224 pixels 100 MB. Maps keep the size of the first ones.

    Raises:
        ValueError: `max_images` is below 1.
    """

    def __init__(self, max_images: int = 1000) -> None:
        if max_images < 1:
            raise ValueError(f"max_images must be 1 or more, got {max_images}")
        self.max_images = max_images
        self._index = torch.empty(0, dtype=torch.long)
        self._maps: Tensor | None = None  # of the last epoch, NaN in a last row that nobody owns
        self._now: Tensor | None = None  # of the same images, NaN until they come again
        self._new: list[tuple[Tensor, Tensor]] = []
        self._room = max_images

    def exchange(self, maps: Tensor | Maps, index: Tensor) -> Tensor:
        """Remembers maps, and gives those of the same images at the epoch before.

        Args:
            maps: `(batch, height, width)`.
            index: the images' places in the dataset, `(batch,)`.

        Returns:
            `(batch, height, width)` in [0, 1], NaN for an image that was not known.

        Raises:
            ValueError: `index` is not one number an image.
        """
        maps = Maps.of(maps)
        if index.shape != (len(maps),):
            raise ValueError(
                f"index must be ({len(maps)},), one number a map, got {tuple(index.shape)}"
            )
        index = index.detach().to(maps.device)
        if self._maps is None or self._now is None:
            size = self._new[0][1].shape[1:] if self._new else maps.units.shape[1:]
            units = maps.resized((size[0], size[1]))
            self._append(index, units)
            return torch.full_like(units, torch.nan)
        units = maps.resized((self._maps.shape[1], self._maps.shape[2]))
        last = len(self._index)
        rows = torch.searchsorted(self._index, index).clamp(max=last - 1)
        known = self._index[rows] == index
        rows = rows.where(known, last)
        # Half precision of a map in [0, 1] moves a correlation by about 1e-7.
        self._now[rows] = units.half().where(known[:, None, None], torch.nan)
        self._append(index.where(~known, -1), units)
        return self._maps[rows].float()

    def end_epoch(self) -> None:
        """What was remembered since is what the next epoch gets; nothing changes if nothing was."""
        parts = [*self._new]
        if self._now is not None:
            parts.insert(0, (self._index, self._now[:-1]))
        if not parts:
            return
        # Tensors made under inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            index, maps = (torch.cat(column) for column in zip(*parts, strict=True))
            seen = (index >= 0) & ~maps.flatten(1).isnan().any(1)
            if not seen.any():
                return
            index, order = index[seen].sort(stable=True)
            first = torch.cat([index.new_ones(1), index.diff()]).bool()
            self._index, kept = index[first], maps[seen][order][first]
            self._maps = torch.cat([kept, torch.full_like(kept[:1], torch.nan)])
            self._now = torch.full_like(self._maps, torch.nan)
        self._new, self._room = [], self.max_images - len(self._index)

    def _append(self, index: Tensor, units: Tensor) -> None:
        if self._room > 0:
            self._new.append((index[: self._room], units[: self._room].half()))
            self._room -= len(index)


class Drift(ImageMean):
    """One minus Pearson's correlation of an image's maps at consecutive epochs; in [0, 2].

    0 is the same map up to its scale, 1 an unrelated one; steadier is lower, neither is better.
    No other package has it; the correlation is checked against NumPy's. In a first epoch there is
    nothing to compare: `compute` gives NaN and `has_value` is False, so do not log it. A map that
    is flat in either epoch has no correlation: skipped.

    >>> drift, memory = Drift(), MapMemory()
    >>> for scale in (1, 2):
    ...     maps = scale * torch.eye(3)[None]
    ...     drift.update(maps, memory.exchange(maps, index=torch.tensor([7])))
    ...     memory.end_epoch()
    >>> round(drift.compute().item(), 4)
    0.0
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("drift", **kwargs)

    def update(self, maps: Tensor | Maps, before: Tensor) -> None:
        """Adds maps `(batch, height, width)` and those of the same images at the epoch before.

        Of `before` `(batch, h, w)`, NaN is an image that was not known then and does not count.

        Raises:
            ValueError: not one map an image.
        """
        maps = Maps.of(maps)
        if before.ndim != 3 or len(before) != len(maps):
            raise ValueError(
                f"before must be ({len(maps)}, height, width), got {tuple(before.shape)}"
            )
        known = before.isfinite().flatten(1).all(1)
        now = maps.resized((before.shape[1], before.shape[2]))
        values, defined = _correlate(before.where(known[:, None, None], 0.0), now)
        self._add(known & defined, known, drift=1 - values)


def _correlate(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson's correlation of maps `(batch, height, width)`, and where it is defined."""
    a, b = (rearrange(maps, "batch h w -> batch (h w)") for maps in (first, second))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    # Half precision makes a flat map no flatter, and rounding of the mean no rougher than this.
    floor = 1e-4 * prod(first.shape[1:]) ** 0.5
    long_a, long_b = a.norm(dim=1), b.norm(dim=1)
    product = (a * b).sum(1) / (long_a * long_b)
    return product.clamp(-1, 1), (long_a > floor) & (long_b > floor)
