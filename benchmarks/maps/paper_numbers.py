"""What `paper_table.py` measured, as tables: means over photos, with intervals.

All maps are brought to one grid before they are compared, the coarsest of all, by averaging: a fine
grid shall not be what makes a map local. On that grid, each map scaled to sum 1:

- `half area`: the smallest share of the image that holds half of the map. 50 % is a flat map.
- `distance`: how far from the map's maximum it lies in the mean, in sides of the image.
- `blank maps`: the share that holds nothing; a miss of the pointing game, and in no other column.
- agreement: Spearman's correlation over the grid of two networks' maps of one photo, the mean over
  pairs of networks, seed by seed. Beside it that of maps of different photos, which is what maps
  have in common that do not look at their photo: the middle.

Runs that differ in their seed alone are one network. In brackets: 95 % intervals over its seeds and
the photos, by 2000 bootstrap samples of both. Of one seed they say nothing of another.
"""

import warnings
from collections.abc import Iterable, Sequence
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
        run: What the runs have in common that differ in their seed alone.
    """

    name: str
    family: str
    image_size: int
    layer: str
    right: list[bool]
    maps: list[list[list[float]]]
    numbers: dict[str, list[float]]
    run: str = ""


class Network:
    """The runs of a network, which differ in their seed alone.

    Args:
        runs: One a seed.
        grid: Height and width that maps are compared at.
    """

    def __init__(self, runs: Sequence[Found], grid: tuple[int, int]) -> None:
        self.runs = runs
        self.name, self.family, self.layer = runs[0].name, runs[0].family, runs[0].layer
        self.maps = [to_grid(torch.tensor(each.maps), grid) for each in runs]
        self._local = [measure_local(each) for each in self.maps]

    def local(self, key: str) -> np.ndarray:
        """A number of its maps, `(seeds, photos)`."""
        return np.stack([each[key] for each in self._local])

    def numbers(self, key: str) -> np.ndarray:
        """A number of the tables, `(seeds, photos)`."""
        return np.array([each.numbers[key] for each in self.runs], dtype=float)


def make_tables(found: Sequence[Found]) -> str:
    """The tables, as Markdown."""
    # A photo of which no network has a map is no news.
    warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
    grid = min(len(each.maps[0]) for each in found), min(len(each.maps[0][0]) for each in found)
    runs: dict[str, list[Found]] = {}
    for each in found:
        runs.setdefault(each.run, []).append(each)
    networks = [Network(each, grid) for each in runs.values()]
    parts = [_boxes(networks), _network(networks), _local(networks, grid)]
    if {"CNN", "transformer"} <= {each.family for each in networks}:
        parts.append(_claim(networks))
    return "\n\n".join([*parts, _agreement(networks)])


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
    """Mean of `(seeds, photos)` without NaN, and its 95 % interval by bootstrap of both."""
    generator, (seeds, photos) = np.random.default_rng(0), values.shape
    photo = generator.integers(photos, size=(NUM_SAMPLES, 1, photos))
    seed = generator.integers(seeds, size=(NUM_SAMPLES, seeds, 1))
    low, high = np.nanpercentile(np.nanmean(values[seed, photo], (1, 2)), (2.5, 97.5))
    return float(np.nanmean(values)), float(low), float(high)


def told(values: np.ndarray) -> str:
    """A mean of `(seeds, photos)` with its interval."""
    mean, low, high = interval(values)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _boxes(networks: Sequence[Network]) -> str:
    rows = []
    for each in networks:
        right = np.array([run.right for run in each.runs], dtype=float)
        rows.append(
            [f"{each.name}, {each.runs[0].image_size} px", str(len(each.runs)), told(right)]
        )
        rows[-1] += [told(each.numbers(key)) for key in ("energy", "pointing")]
    for title, key in (("nothing", "chance"), ("the middle", "centre")):
        own = (networks[0].numbers(f"{name}_{key}") for name in ("energy", "pointing"))
        rows.append([f"a map of {title}", "", "", *(f"{np.nanmean(each):.3f}" for each in own)])
    return table(["network", "seeds", "accuracy", "energy inside", "pointing game"], rows)


def _network(networks: Sequence[Network]) -> str:
    rows = []
    for each in networks:
        cells = []
        for key in ("deletion", "insertion"):
            own, noise = each.numbers(key), each.numbers(f"{key}_noise")
            # Of the same photos: those without a map are often all of one class.
            cells += [told(own), told(np.where(np.isnan(own), np.nan, noise))]
        rows.append([each.name, *cells, told(each.numbers("road"))])
    head = ["deletion", "of noise", "insertion", "of noise", "ROAD at 50 %"]
    return table(["network", *head], rows)


def _local(networks: Sequence[Network], grid: tuple[int, int]) -> str:
    rows = []
    for each in networks:
        made = f"{each.layer}, {' × '.join(map(str, np.shape(each.runs[0].maps)[1:]))}"
        blank = f"{np.isnan(each.local('half_area')).mean():.3f}"
        rows.append([each.name, made, blank, *(told(each.local(key)) for key in LOCAL)])
    return table([f"at {grid[0]} × {grid[1]}", "made at", "blank maps", *LOCAL.values()], rows)


def _claim(networks: Sequence[Network]) -> str:
    """Transformers minus CNNs, photo by photo and seed by seed."""
    lines = []
    for key, name in LOCAL.items():
        cnn, transformer = (
            _mean(each.local(key) for each in networks if each.family == family)
            for family in ("CNN", "transformer")
        )
        _, low, high = interval(transformer - cnn)
        noise = ", no difference beyond noise" if low <= 0 <= high else ""
        lines.append(f"* {name}, transformers minus CNNs: {told(transformer - cnn)}{noise}")
    return "\n".join(lines)


def _mean(values: Iterable[np.ndarray]) -> np.ndarray:
    """Over arrays `(seeds, photos)`; one of fewer seeds begins again."""
    arrays = list(values)
    seeds = max(len(each) for each in arrays)
    return np.nanmean([each[np.arange(seeds) % len(each)] for each in arrays], 0)


def _agreement(networks: Sequence[Network]) -> str:
    """Of each pair of families, with maps of one photo and of different ones."""
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for a, b in combinations(networks, 2):
        names = sorted((a.family, b.family), key=["CNN", "transformer", "beside"].index)
        seeds = range(max(len(a.maps), len(b.maps)))
        pairs = [(a.maps[seed % len(a.maps)], b.maps[seed % len(b.maps)]) for seed in seeds]
        groups.setdefault(" and ".join(names), []).append(_agree(pairs))
    for each in networks:
        if len(each.maps) > 1:
            pairs = list(zip(each.maps, [*each.maps[1:], each.maps[0]], strict=True))
            groups.setdefault(f"{each.family} and its other seed", []).append(_agree(pairs))
    rows = []
    for name in sorted(groups):
        same, other = (_mean(each) for each in zip(*groups[name], strict=True))
        rows.append([name, str(len(groups[name])), told(same), told(other), told(same - other)])
    head = ["families", "pairs", "the same photo", "different photos", "difference"]
    return table(head, rows)


def _agree(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of maps of the same photo and of different ones, `(seeds, photos)` each."""
    same = [rank_correlation(first, second).numpy() for first, second in pairs]
    other = [rank_correlation(first, second.roll(1, 0)).numpy() for first, second in pairs]
    return np.stack(same), np.stack(other)
