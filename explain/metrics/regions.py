"""Maps and the regions they are measured against, brought to one size."""

from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# Differences below this share of a map's maximum are rounding, as in `scale_maps`.
ROUNDING = 1e-6


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `(batch, height, width)` resized bilinearly to `size` in pixels, as overlays are."""
    if maps.shape[1:] == size:
        return maps
    stack = rearrange(maps, "batch h w -> batch 1 h w")
    resized = F.interpolate(stack, size, mode="bilinear", align_corners=False)
    return rearrange(resized, "batch 1 h w -> batch h w")


class Maps:
    """The maps of a batch on one scale, made once however many metrics ask: pass them the same one.

    Args:
        maps: `(batch, height, width)`, as `CAM` gives them.

    Raises:
        ValueError: another number of axes.
    """

    def __init__(self, maps: Tensor) -> None:
        if maps.ndim != 3:
            raise ValueError(f"maps must be (batch, height, width), got {tuple(maps.shape)}")
        self._raw = maps.detach().float()
        self._resized: dict[tuple[int, int], Tensor] = {}

    @classmethod
    def of(cls, maps: "Tensor | Maps") -> "Maps":
        """The same where it is one already."""
        return maps if isinstance(maps, Maps) else cls(maps)

    def __len__(self) -> int:
        return len(self._raw)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self._raw.device

    @cached_property
    def finite(self) -> Tensor:
        """Which `(batch,)` of them are."""
        return self._raw.isfinite().flatten(1).all(1)

    @cached_property
    def units(self) -> Tensor:
        """Nothing below 0, each divided by its maximum; one that is not finite is 0 everywhere."""
        maps = self._raw.where(self.finite[:, None, None], 0.0).clamp_(min=0)
        high = maps.amax((1, 2), keepdim=True)
        return maps / high.where(high > 0, 1.0)

    @cached_property
    def high(self) -> Tensor:
        """The largest `(batch,)` of each of `units`: 1, or 0 of a map of nothing."""
        return self.units.amax((1, 2))

    @cached_property
    def constant(self) -> Tensor:
        """Which `(batch,)` are flat up to rounding."""
        return self.high - self.units.amin((1, 2)) <= ROUNDING

    def resized(self, size: tuple[int, int]) -> Tensor:
        """`units` at `size` in pixels."""
        if size not in self._resized:
            self._resized[size] = resize_maps(self.units, size)
        return self._resized[size]


def find_masks(
    region: Tensor, maps: Tensor | Maps, image_size: tuple[int, int] | None = None
) -> Tensor:
    """Where the objects are, as masks `(batch, height, width)` on the device of `maps`.

    An image whose mask or boxes hold no pixel gets an empty mask, which the metrics leave out and
    count: that of an empty mask, of boxes wholly outside, of boxes with `x2 <= x1` or NaN, such as
    the padding of images with fewer objects than others.

    Args:
        region: masks `(batch, height, width)`, at any size, that show all of the image; or boxes
            `(batch, 4)`: x1 y1 x2 y2 in pixels, x2 and y2 excluded. Of several objects an image,
            as masks `(batch, num_objects, height, width)` or boxes `(batch, num_objects, 4)`, the
            union; three axes of which the last is 4 are boxes, unless they are bool or the image
            is of that size. A mask's pixel counts where it is above 0.5: any positive one of whole
            numbers, of shares those that are mostly object. A pixel is in a box if its centre is;
            what reaches outside of the image is cut.
        maps: `(batch, height, width)` of the same images.
        image_size: height and width of the images that boxes are measured in.

    Raises:
        ValueError: another shape, another number of images, or boxes without `image_size`.
    """
    if region.ndim == 0 or len(region) != len(maps):
        num = len(region) if region.ndim else "no"
        raise ValueError(f"region has {num} images but maps {len(maps)}: pass one each")
    region = region.to(Maps.of(maps).device)
    if _is_boxes(region, image_size):
        return _fill(rearrange(region, "batch ... corner -> batch (...) corner"), image_size)
    if region.ndim not in (3, 4):
        raise ValueError(
            "region must be masks (batch, h, w) or (batch, num_objects, h, w), or boxes (batch, 4) "
            f"or (batch, num_objects, 4), got {tuple(region.shape)}"
        )
    masks = region if region.dtype == torch.bool else region > 0.5
    return masks if masks.ndim == 3 else masks.any(1)


def _is_boxes(region: Tensor, image_size: tuple[int, int] | None) -> bool:
    """Whether these are boxes; three axes of which the last is 4 may be a mask as narrow."""
    if region.ndim not in (2, 3) or region.shape[-1] != 4 or region.dtype == torch.bool:
        return False
    return region.ndim == 2 or region.shape[1:] != image_size


def _fill(boxes: Tensor, image_size: tuple[int, int] | None) -> Tensor:
    """Masks `(batch, height, width)` of all that is in boxes `(batch, num_objects, 4)`."""
    if image_size is None:
        raise ValueError("region has boxes, in pixels of what? Pass image_size=(height, width)")
    y, x = (torch.arange(side, device=boxes.device).float() + 0.5 for side in image_size)
    x1, y1, x2, y2 = rearrange(boxes, "batch n corner -> corner batch n 1")
    rows, columns = (y1 <= y) & (y < y2), (x1 <= x) & (x < x2)
    # How many boxes a pixel is in, without a mask for each of them.
    return torch.bmm(rearrange(rows.float(), "b n h -> b h n"), columns.float()) > 0.5


@lru_cache(maxsize=8)  # every batch asks for the same
@torch.inference_mode(False)
def centred_blob(size: tuple[int, int], device: torch.device) -> Tensor:
    """A map `(height, width)` that knows of no image: a Gaussian in the middle, of sum 1.

    Its standard deviation is a quarter of each side.
    """
    sides = [torch.linspace(-1, 1, 2 * side + 1, device=device)[1::2] for side in size]
    rows, columns = (torch.exp(-2 * side**2) for side in sides)
    return rows[:, None] / rows.sum() * columns / columns.sum()


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def middle(size: tuple[int, int], device: torch.device) -> Tensor:
    """Where `centred_blob` is largest, `(height, width)`: one position, or two or four alike."""
    blob = centred_blob(size, device)
    return blob >= blob.max() * (1 - ROUNDING)


def dilate(masks: Tensor, radius: int) -> Tensor:
    """Masks `(batch, height, width)` with all within `radius` pixels of them."""
    if not radius:
        return masks
    side = torch.arange(-radius, radius + 1, device=masks.device)
    disc = (side[:, None] ** 2 + side**2 <= radius**2).float()
    # Sums of zeros and ones: exact in any precision that a device may choose for them.
    near = F.conv2d(masks[:, None].float(), disc[None, None], padding=radius)
    return near[:, 0] > 0.5
