"""How good a map is, from the map alone: torchmetrics that cost no forward.

Each is a mean over images, summed on the device and synchronised over ranks.
"""

from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor

from litcam.explain.metrics.image_mean import ImageMean
from litcam.explain.metrics.regions import ROUNDING, Maps, centred_blob, dilate, find_masks, middle


class PointingGame(ImageMean):
    """Share of images whose map is largest on the object; in [0, 1], higher is better.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", IJCV 2018,
    https://arxiv.org/abs/1608.00507, section 4.2. As in Quantus' `PointingGame`, one of several
    equal maxima on the object is enough; but a constant or zero map points nowhere and is a miss
    here, and a hit there. `chance` is the share a random point would hit, `centre` the share that
    the middle of the image would: photographers aim.

    Args:
        tolerance: how far off the object still counts, in pixels of the mask, or of the images
            that boxes are measured in; the paper has 15.
        kwargs: torchmetrics' own options.

    Raises:
        ValueError: `tolerance` is negative.

    >>> game = PointingGame()
    >>> game.update(torch.eye(4)[None], torch.tensor([[0, 0, 2, 4]]), image_size=(4, 4))
    >>> game.compute().item(), game.chance.item()
    (1.0, 0.5)
    """

    higher_is_better = True
    skips = "no object in their mask, or in their box (x1 y1 x2 y2 in pixels)"

    def __init__(self, tolerance: int = 0, **kwargs: Any) -> None:
        if tolerance < 0:
            raise ValueError(f"tolerance must be 0 pixels or more, got {tolerance}")
        super().__init__("pointing_game", "chance", "centre", **kwargs)
        self.tolerance = tolerance

    @property
    def chance(self) -> Tensor:
        """Mean share of the image that counts as a hit: of all ranks once `compute` ran."""
        return self.facts["chance"]

    @property
    def centre(self) -> Tensor:
        """Share of images whose middle counts as a hit: of all ranks once `compute` ran."""
        return self.facts["centre"]

    def update(
        self, maps: Tensor | Maps, region: Tensor, image_size: tuple[int, int] | None = None
    ) -> None:
        """Adds a batch of maps `(batch, height, width)`; `region` as for `find_masks`."""
        maps = Maps.of(maps)
        masks = find_masks(region, maps, image_size)
        near = dilate(masks, self.tolerance)
        spots = maps.resized((masks.shape[1], masks.shape[2]))
        # Bilinear weights round differently from place to place, also where the map is flat.
        peaks = spots >= spots.amax((1, 2), keepdim=True) * (1 - ROUNDING)
        hits = (peaks & near).flatten(1).any(1) & ~maps.constant
        chance = reduce(near.float(), "batch height width -> batch", "mean")
        shown = middle((masks.shape[1], masks.shape[2]), masks.device)
        centre = (near & shown).flatten(1).any(1).float()
        facts = {"chance": chance, "centre": centre}
        self._add(masks.flatten(1).any(1), pointing_game=hits.float(), **facts)


class EnergyInside(ImageMean):
    """Share of the map's positive sum that lies on the object; in [0, 1], higher is better.

    The energy-based pointing game of Wang et al., "Score-CAM", CVPR Workshops 2020,
    https://arxiv.org/abs/1910.01279, section 4.3; relevance mass accuracy of Arras et al.,
    "CLEVR-XAI", Information Fusion 2022, https://arxiv.org/abs/2003.07258. Equals Quantus'
    `RelevanceMassAccuracy`. Zero maps are skipped. `chance` is what a constant map would get,
    `centre` what a blob in the middle of every image would: photographers aim.
    """

    higher_is_better = True
    skips = f"{PointingGame.skips}, or nothing in their map"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("energy_inside", "chance", "centre", **kwargs)

    @property
    def chance(self) -> Tensor:
        """Mean share of the image that is object: of all ranks once `compute` ran."""
        return self.facts["chance"]

    @property
    def centre(self) -> Tensor:
        """Mean share of `centred_blob` that is on the object: of all ranks once `compute` ran."""
        return self.facts["centre"]

    def update(
        self, maps: Tensor | Maps, region: Tensor, image_size: tuple[int, int] | None = None
    ) -> None:
        """Adds a batch of maps `(batch, height, width)`; `region` as for `find_masks`."""
        maps = Maps.of(maps)
        masks = find_masks(region, maps, image_size)
        spots = maps.resized((masks.shape[1], masks.shape[2]))
        total = reduce(spots, "batch height width -> batch", "sum")
        inside = reduce(spots.where(masks, 0.0), "batch height width -> batch", "sum")
        chance = reduce(masks.float(), "batch height width -> batch", "mean")
        keep = masks.flatten(1).any(1) & (total > 0)
        blob = centred_blob((masks.shape[1], masks.shape[2]), masks.device)
        centre = reduce(blob * masks, "batch height width -> batch", "sum")
        self._add(keep, energy_inside=inside / total, chance=chance, centre=centre)


class Sparseness(ImageMean):
    """Gini index of the map's values: 0 if all are equal, `1 - 1 / n` if one of n holds all.

    Chalasani et al., "Concise Explanations of Neural Networks using Adversarial Training", ICML
    2020, https://arxiv.org/abs/1810.06583, section 6.1. Equals Quantus' `Sparseness` for maps
    `>= 0`. Neither end is better. Depends on the maps' size: compare maps of one. Zero maps are
    skipped.

    >>> metric = Sparseness()
    >>> metric.update(torch.tensor([[[0.0, 0.0], [0.0, 3.0]]]))
    >>> metric.compute().item()
    0.75
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("sparseness", **kwargs)

    def update(self, maps: Tensor | Maps) -> None:
        """Adds a batch of maps `(batch, height, width)`."""
        values = rearrange(Maps.of(maps).units, "batch h w -> batch (h w)").sort(dim=1).values
        n = values.shape[1]
        places = torch.arange(1, n + 1, device=values.device)
        total = values.sum(1)
        self._add(total > 0, sparseness=((2 * places - n - 1) / n * values).sum(1) / total)


# How a map may show nothing.
BLANK = ("not_finite", "all_zero", "constant")


class BlankMaps(ImageMean):
    """Share of maps that show nothing: all zero, constant, or not finite; lower is better.

    litcam's own. A zero Grad-CAM map says that no position speaks for the class, which happens
    now and then; most of them zero, or one not finite, says that something is broken.

    >>> blank = BlankMaps()
    >>> blank.update(torch.stack([torch.eye(2), torch.zeros(2, 2), torch.full((2, 2), torch.nan)]))
    >>> round(blank.compute().item(), 3), {kind: round(x, 3) for kind, x in blank.kinds.items()}
    (0.667, {'not finite': 0.333, 'all zero': 0.333, 'constant': 0.0})
    """

    higher_is_better = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("blank_maps", *BLANK, **kwargs)

    @property
    def kinds(self) -> dict[str, float]:
        """Share of each kind: of all ranks once `compute` ran."""
        return {name.replace("_", " "): float(self.facts[name]) for name in BLANK}

    def update(self, maps: Tensor | Maps) -> None:
        """Adds a batch of maps `(batch, height, width)`."""
        maps = Maps.of(maps)
        broken = ~maps.finite
        zero = maps.finite & (maps.high == 0)
        constant = maps.constant & (maps.high > 0)
        kinds = {"not_finite": broken, "all_zero": zero, "constant": constant}
        floats = {name: kind.float() for name, kind in kinds.items()}
        blank = (broken | zero | constant).float()
        self._add(torch.ones_like(broken), blank_maps=blank, **floats)
