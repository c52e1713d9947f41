"""What `paper_table.py` measured, as tables: means over photos, with intervals.

All maps are brought to one grid before they are compared, the coarsest of all, by averaging: a fine
grid shall not be what makes a map local. On that grid, each map scaled to sum 1:

- `half area`: the smallest share of the image that holds half of the map. 50 % is a flat map.
- `distance`: how far from the map's maximum it lies in the mean, in sides of the image.
- `blank maps`: the share that holds nothing; a miss of the pointing game, and in no other column.
- agreement: Spearman's correlation over the grid of two networks' maps of one photo, the mean over
  pairs of networks. Beside it that of maps of different photos, which is what maps have in common
  that do not look at their photo: the middle.

In brackets: 95 % intervals over photos, by 2000 bootstrap samples. They hold for these networks,
and say nothing of what another seed would give.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from litcam.explain import Sparseness
from litcam.explain.metrics.randomisation import rank_correlation

NUM_SAMPLES = 2000
LOCAL = {"half_area": "half area", "distance": "distance", "sparseness": "sparseness"}


@dataclass
class Found:
    """What a network gave.

    Attributes:
        name: Of the network, and how many classes it has.
        family: `CNN`, `transformer`, or `beside`.
        image_size: Side of its images in pixels.
        layer: That its maps are of.
        right: For each photo of the folder, whether the answer was right.
        maps: Of each photo with boxes, `(height, width)` after the ReLU.
        numbers: By metric, of each of these photos; NaN where it has no value.
    """

    name: str
    family: str
    image_size: int
    layer: str
    right: list[bool]
    maps: list[list[list[float]]]
    numbers: dict[str, list[float]]


def make_tables(found: Sequence[Found]) -> str:
    """The tables, as Markdown."""
    # A photo of which no network has a map is no news.
    warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
    grid = min(len(each.maps[0]) for each in found), min(len(each.maps[0][0]) for each in found)
    maps = [to_grid(torch.tensor(each.maps), grid) for each in found]
    local = [measure_local(each) for each in maps]
    parts = [_boxes(found), _network(found), _local(found, local, grid)]
    if {"CNN", "transformer"} <= {each.family for each in found}:
        parts.append(_claim(found, local))
    return "\n\n".join([*parts, _agreement(found, maps)])


def to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps `(batch, h, w)` at a coarser grid, each of sum 1; one of nothing stays so."""
    coarse = F.adaptive_avg_pool2d(maps.clamp(min=0)[:, None], grid)[:, 0]
    total = reduce(coarse, "b h w -> b 1 1", "sum")
    return coarse / total.where(total > 0, 1.0)


def measure_local(maps: Tensor) -> dict[str, np.ndarray]:
    """How local each map `(batch, h, w)` of sum 1 is, `(batch,)`; NaN for one of nothing."""
    empty = maps.sum((1, 2)) == 0
    found = {"half_area": half_area(maps), "distance": mean_distance(maps)}
    values = {key: value.masked_fill(empty, torch.nan).numpy() for key, value in found.items()}
    gini = []
    for each in maps:
        metric = Sparseness()
        metric.update(each[None])
        gini.append(float(metric.compute()) if each.any() else float("nan"))
    return values | {"sparseness": np.array(gini)}


def half_area(maps: Tensor) -> Tensor:
    """Smallest share of the cells that holds half of a map of sum 1, a cell in parts.

    >>> half_area(torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.25, 0.25], [0.25, 0.25]]]))
    tensor([0.1250, 0.5000])
    """
    cells = rearrange(maps, "b h w -> b (h w)").sort(1, descending=True).values
    before = cells.cumsum(1) - cells
    return ((0.5 - before) / cells).clamp(0, 1).nan_to_num(0).mean(1)


def mean_distance(maps: Tensor) -> Tensor:
    """How far from its maximum a map of sum 1 lies in the mean, in sides of the image.

    >>> mean_distance(torch.tensor([[[0.5, 0.5]]]))
    tensor([0.2500])
    """
    height, width = maps.shape[1:]
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    peak = maps.flatten(1).argmax(1)
    down = y - y[peak // width][:, None]
    right = x - x[peak % width][:, None]
    distance = (down[:, :, None] ** 2 + right[:, None, :] ** 2).sqrt()
    return reduce(maps * distance, "b h w -> b", "sum")


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of `(photos,)` without NaN, and its 95 % interval by bootstrap."""
    chosen = np.random.default_rng(0).integers(len(values), size=(NUM_SAMPLES, len(values)))
    low, high = np.nanpercentile(np.nanmean(values[chosen], 1), (2.5, 97.5))
    return float(np.nanmean(values)), float(low), float(high)


def told(values: Sequence[float] | np.ndarray) -> str:
    """A mean with its interval."""
    mean, low, high = interval(np.asarray(values, dtype=float))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _boxes(found: Sequence[Found]) -> str:
    rows = []
    for each in found:
        own = each.numbers
        rows.append([f"{each.name}, {each.image_size} px", told(each.right)])
        rows[-1] += [told(own[key]) for key in ("energy", "pointing")]
    own = found[0].numbers
    for title, key in (("nothing", "chance"), ("the middle", "centre")):
        means = [f"{np.nanmean(own[f'{name}_{key}']):.3f}" for name in ("energy", "pointing")]
        rows.append([f"a map of {title}", "", *means])
    return table(["network", "accuracy", "energy inside", "pointing game"], rows)


def _network(found: Sequence[Found]) -> str:
    rows = []
    for each in found:
        cells = []
        for key in ("deletion", "insertion"):
            own, noise = (np.array(each.numbers[name]) for name in (key, f"{key}_noise"))
            # Of the same photos: those without a map are often all of one class.
            cells += [told(own), told(np.where(np.isnan(own), np.nan, noise))]
        rows.append([each.name, *cells, told(each.numbers["road"])])
    head = ["deletion", "of noise", "insertion", "of noise", "ROAD at 50 %"]
    return table(["network", *head], rows)


def _local(
    found: Sequence[Found], local: Sequence[dict[str, np.ndarray]], grid: tuple[int, int]
) -> str:
    rows = []
    for each, own in zip(found, local, strict=True):
        made = f"{each.layer}, {len(each.maps[0])} × {len(each.maps[0][0])}"
        blank = f"{np.isnan(own['half_area']).mean():.3f}"
        rows.append([each.name, made, blank, *(told(own[key]) for key in LOCAL)])
    return table([f"at {grid[0]} × {grid[1]}", "made at", "blank maps", *LOCAL.values()], rows)


def _claim(found: Sequence[Found], local: Sequence[dict[str, np.ndarray]]) -> str:
    """Transformers minus CNNs, photo by photo."""
    lines = []
    for key, name in LOCAL.items():
        cnn, transformer = (
            np.nanmean([n[key] for n, f in zip(local, found, strict=True) if f.family == family], 0)
            for family in ("CNN", "transformer")
        )
        _, low, high = interval(transformer - cnn)
        noise = ", no difference beyond noise" if low <= 0 <= high else ""
        lines.append(f"* {name}, transformers minus CNNs: {told(transformer - cnn)}{noise}")
    return "\n".join(lines)


def _agreement(found: Sequence[Found], maps: Sequence[Tensor]) -> str:
    """Of each pair of families, with maps of one photo and of different ones."""
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for (a, first), (b, second) in combinations(zip(found, maps, strict=True), 2):
        names = sorted((a.family, b.family), key=["CNN", "transformer", "beside"].index)
        same = rank_correlation(first, second).numpy()
        other = rank_correlation(first, second.roll(1, 0)).numpy()
        groups.setdefault(" and ".join(names), []).append((same, other))
    rows = []
    for name in sorted(groups):
        same, other = (np.nanmean(each, 0) for each in zip(*groups[name], strict=True))
        rows.append([name, str(len(groups[name])), told(same), told(other), told(same - other)])
    head = ["families", "pairs", "the same photo", "different photos", "difference"]
    return table(head, rows)
