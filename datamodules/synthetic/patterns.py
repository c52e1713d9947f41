"""Draws patterned objects with random outlines, and distractors without a pattern, on backgrounds.

Everything is drawn for a whole chunk of images at once. Lengths are in units of the image's side,
so that an image means the same at every size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor

__all__ = ["PATTERNS", "SHORTCUT_COLOURS", "draw_images", "shortcut_side"]

_NUM_ANGLES = 512  # half a pixel of arc at the largest radius in a 128-pixel image
_NUM_DISTRACTORS = 3
_OBJECT_AREA = (0.08, 0.24)  # of the image
_DISTRACTOR_AREA = (0.02, 0.12)
_PERIOD = (0.105, 0.15)  # of a pattern: about 7 to 10 pixels in an image of 64

# red, green, blue, yellow, magenta, cyan, white, black, orange, grey: told at a glance
_HEX = (0xFF0000, 0x00CC00, 0x0000FF, 0xFFFF00, 0xFF00FF, 0x00FFFF, 0xFFFFFF, 0, 0xFF8000, 0x808080)
SHORTCUT_COLOURS = torch.tensor([[(h >> bits & 255) / 255 for bits in (16, 8, 0)] for h in _HEX])

Uniform = Callable[..., Tensor]


def _stripes(u: Tensor, v: Tensor, random: Uniform) -> Tensor:
    return torch.sin(2 * math.pi * u)


def _checks(u: Tensor, v: Tensor, random: Uniform) -> Tensor:
    return 1.5 * torch.sin(1.5 * math.pi * u) * torch.sin(1.5 * math.pi * v)


def _dots(u: Tensor, v: Tensor, random: Uniform) -> Tensor:
    # Half of the area is ink, as in the other patterns: a share of its own would show in the mean.
    u, v = u / 1.15, v / 1.15
    return 5 * (0.4 - torch.hypot(u - u.round(), v - v.round()))


def _rings(u: Tensor, v: Tensor, random: Uniform) -> Tensor:
    phase = random(0.0, 2 * math.pi)
    return torch.sin(2 * math.pi * torch.hypot(u, v) + phase)


def _rays(u: Tensor, v: Tensor, random: Uniform) -> Tensor:
    num_rays = random(5.0, 8.0).floor()
    # The factor turns a difference of angle into one of length, so that edges are equally sharp.
    return torch.sin(num_rays * torch.atan2(v, u)) * torch.hypot(u, v) * 6 / num_rays


def _zigzag(u: Tensor, v: Tensor, random: Uniform) -> Tensor:
    triangle = 2 * (v / 2 - (v / 2).round()).abs()
    return torch.sin(2 * math.pi * (u + 1.2 * triangle))


def _camouflage(u: Tensor, v: Tensor, random: Uniform) -> Tensor:
    field = torch.zeros_like(u)
    for _ in range(7):  # plane waves from all sides add up to blotches without a lattice
        angle, phase = random(0.0, 2 * math.pi), random(0.0, 2 * math.pi)
        frequency = random(2.6, 4.2)
        field += torch.cos(frequency * (u * torch.cos(angle) + v * torch.sin(angle)) + phase)
    return field


def _squares(u: Tensor, v: Tensor, random: Uniform) -> Tensor:
    phase = random(0.0, 2 * math.pi)
    return torch.sin(2 * math.pi * torch.maximum(u.abs(), v.abs()) + phase)


def _bricks(u: Tensor, v: Tensor, random: Uniform) -> Tensor:
    course = v.round()
    shifted = u / 2 + 0.5 * (course % 2)
    across, along = (v - course).abs(), 2 * (shifted - shifted.round()).abs()
    return 6 * (0.36 - torch.maximum(across, along - 0.5 + 0.36 * 0.4))


def _spiral(u: Tensor, v: Tensor, random: Uniform) -> Tensor:
    return torch.sin(2 * math.pi * torch.hypot(u, v) / 1.2 - torch.atan2(v, u))


# In the order of the classes. Each takes coordinates `(n, side, side)` in periods, turned by a
# random angle about the object's centre, and gives a field that is positive where there is ink.
PATTERNS: dict[str, Callable[[Tensor, Tensor, Uniform], Tensor]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "rays": _rays,
    "zigzag": _zigzag,
    "camouflage": _camouflage,
    "squares": _squares,
    "bricks": _bricks,
    "spiral": _spiral,
}
_ABOUT_THE_CENTRE = ("rings", "rays", "squares", "spiral")  # the others start anywhere


def shortcut_side(image_size: int) -> int:
    """The side in pixels of the patch in the top left corner that `shortcut` draws."""
    return max(4, round(image_size / 8))


def _uniform(num: int, generator: torch.Generator) -> Uniform:
    """A function `(low, high)` that gives `(num, 1, 1)` random numbers."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num, 1, 1, generator=generator)

    return uniform


def _random_outlines(
    num: int, area: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blobs and polygons of random size and pose, as radii by angle.

    Returns:
        The radii `(num, num_angles)` and the largest radius of each `(num, 1)`.
    """
    uniform = _uniform(num, generator)
    angles = torch.arange(_NUM_ANGLES) * (2 * math.pi / _NUM_ANGLES)
    blob = torch.zeros(num, _NUM_ANGLES)
    for wave in range(2, 6):
        height, phase = uniform(0.0, 0.36)[:, 0] / wave**0.5, uniform(0.0, 2 * math.pi)[:, 0]
        blob += height * torch.cos(wave * angles + phase)
    sector = 2 * math.pi / uniform(3.0, 7.0)[:, 0].floor()
    turned = (angles + uniform(0.0, 2 * math.pi)[:, 0]) % sector
    polygon = 1 / torch.cos(turned - sector / 2)
    radii = torch.where(uniform(0.0, 1.0)[:, 0] < 0.5, blob.exp(), polygon)
    shares = torch.exp(uniform(math.log(area[0]), math.log(area[1]))[:, 0])
    radii *= (shares / (math.pi * radii.square().mean(1, keepdim=True))).sqrt()
    return radii, radii.amax(1, keepdim=True)


def _cover(radii: Tensor, centres: Tensor, image_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """How much of each pixel lies inside the outline, and the offsets from the centre.

    Args:
        radii: `(n, num_angles)`.
        centres: `(n, 2)` as (y, x).
        image_size: the side in pixels.

    Returns:
        Distance inside the outline in pixels (negative outside), and the offsets y and x, each
        `(n, image_size, image_size)`.
    """
    places = (torch.arange(image_size) + 0.5) / image_size
    y = repeat(places[None] - centres[:, :1], "n h -> n h w", w=image_size)
    x = repeat(places[None] - centres[:, 1:], "n w -> n h w", h=image_size)
    turn = torch.atan2(y, x) * (_NUM_ANGLES / (2 * math.pi))
    nearest = rearrange(turn.round().long() % _NUM_ANGLES, "n h w -> n (h w)")
    limit = rearrange(radii.gather(1, nearest), "n (h w) -> n h w", h=image_size)
    return (limit - torch.hypot(y, x)) * image_size, y, x


def _paste(images: Tensor, colour: Tensor, cover: Tensor) -> None:
    """Blends `colour` `(n, 3, h or 1, w or 1)` into `images` in place, by `cover` `(n, h, w)`."""
    images.lerp_(colour.expand_as(images), rearrange(cover, "n h w -> n 1 h w").expand_as(images))


def _draw_distractors(images: Tensor, generator: torch.Generator) -> None:
    """Draws plain shapes, filled or as a line, anywhere: something wrong to look at."""
    num, image_size = images.shape[0], images.shape[-1]
    uniform = _uniform(num, generator)
    for _ in range(_NUM_DISTRACTORS):
        radii, _ = _random_outlines(num, _DISTRACTOR_AREA, generator)
        inside, _, _ = _cover(radii, torch.rand(num, 2, generator=generator), image_size)
        filled, line = inside + 0.5, 0.018 * image_size + 0.5 - inside.abs()
        cover = torch.where(uniform(0.0, 1.0) < 0.6, filled, line).clamp(0, 1)
        _paste(images, torch.rand(num, 3, 1, 1, generator=generator), cover)


def _two_colours(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ink and paper `(num, 3, 1, 1)`: of any hue, told apart by lightness, in either order."""
    uniform = _uniform(num, generator)
    dark, light = uniform(0.08, 0.35), uniform(0.65, 0.95)
    hues = torch.rand(2, num, 3, generator=generator) - 0.5
    hues -= hues.mean(-1, keepdim=True)
    shades = torch.stack([dark[:, 0], light[:, 0]]) + 0.9 * hues
    shades = rearrange(shades.clamp(0, 1), "two n rgb -> two n rgb 1 1")
    swapped = (uniform(0.0, 1.0) < 0.5)[..., None]
    return (
        torch.where(swapped, shades[0], shades[1]),
        torch.where(swapped, shades[1], shades[0]),
    )


def _ink(y: Tensor, x: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """How much ink each pixel has, by the pattern of its image's class: `(n, h, w)` in [0, 1]."""
    names = list(PATTERNS)
    field = torch.empty_like(y)
    sharpness = 0.16 * y.shape[-1] * _PERIOD[0]
    for label in labels.unique().tolist():
        chosen = (labels == label).nonzero()[:, 0]
        uniform = _uniform(len(chosen), generator)
        angle, period = uniform(0.0, 2 * math.pi), uniform(*_PERIOD)
        start_u, start_v = uniform(0.0, 1.0), uniform(0.0, 1.0)
        near, far = x[chosen] / period, y[chosen] / period
        u = near * torch.cos(angle) + far * torch.sin(angle)
        v = far * torch.cos(angle) - near * torch.sin(angle)
        if names[label] not in _ABOUT_THE_CENTRE:
            u, v = u + start_u, v + start_v
        field[chosen] = PATTERNS[names[label]](u, v, uniform)
    return (0.5 + sharpness * field).clamp(0, 1)


def draw_images(
    backgrounds: Tensor, labels: Tensor, patches: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws one object of its class on every background, over distractors; nothing covers it.

    Args:
        backgrounds: `(n, 3, image_size, image_size)` in [0, 1]; drawn on in place.
        labels: `(n,)`, indices into `PATTERNS`.
        patches: `(n, 3)`, the colours of the shortcut's corner, or None for no shortcut.
        generator: what all randomness comes from.

    Returns:
        The images `(n, 3, image_size, image_size)` uint8 and the objects' visible pixels
        `(n, image_size, image_size)` bool.
    """
    num, image_size = backgrounds.shape[0], backgrounds.shape[-1]
    _draw_distractors(backgrounds, generator)
    radii, reach = _random_outlines(num, _OBJECT_AREA, generator)
    room = reach.clamp(max=0.48) + 0.5 / image_size
    centres = room + (1 - 2 * room) * torch.rand(num, 2, generator=generator)
    ink, paper = _two_colours(num, generator)
    if patches is not None:
        side = shortcut_side(image_size)
        backgrounds[..., :side, :side] = rearrange(patches, "n rgb -> n rgb 1 1")
        gap = torch.linalg.vector_norm((centres - side / image_size).clamp(min=0), dim=1)
        # The point mirrored through the middle of the image is always far from the corner.
        centres = torch.where(gap[:, None] < reach + 2 / image_size, 1 - centres, centres)
    inside, y, x = _cover(radii, centres, image_size)
    share = rearrange(_ink(y, x, labels, generator), "n h w -> n 1 h w")
    uniform = _uniform(num, generator)
    light = 1 + uniform(-0.7, 0.7) * y + uniform(-0.7, 0.7) * x
    surface = torch.lerp(paper, ink, share) * rearrange(light, "n h w -> n 1 h w")
    _paste(backgrounds, surface, (inside + 0.5).clamp(0, 1))
    noise = torch.randn(backgrounds.shape, generator=generator)
    images = backgrounds.add_(noise, alpha=0.02).clamp_(0, 1)
    return images.mul_(255).round_().to(torch.uint8), inside >= 0
