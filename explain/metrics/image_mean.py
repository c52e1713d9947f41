"""What the metrics of maps have in common: means over images, some of them left out."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ImageMean(Metric):
    """Means over images of some values; images without a value are left out and counted.

    What is told besides the value is, after `compute`, that of all ranks, as the value is; while
    images are added, that of this one.

    Args:
        names: of the values; `compute` returns the first.
        kwargs: torchmetrics' own options.
    """

    is_differentiable = False
    full_state_update = False
    skips = "their map is flat"  # why an image is left out
    count: Tensor
    skipped: Tensor

    def __init__(self, *names: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._names, self._facts = names, dict[str, Tensor]()
        # The names keep MetricCollection from taking two metrics of equal sums for one.
        for name in names:
            self.add_state(f"{name}_sum", torch.zeros(()), "sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), "sum")
        self.add_state("skipped", torch.zeros((), dtype=torch.long), "sum")

    @property
    def facts(self) -> dict[str, Tensor]:
        """Every mean by its name, and how many images `count` and how many were `skipped`."""
        return self._facts or self._means()

    @property
    def num_skipped(self) -> int:
        """Images left out."""
        return int(self.facts["skipped"])

    @property
    def num_measured(self) -> int:
        """Images with a value."""
        return int(self.facts["count"])

    @property
    def has_value(self) -> bool:
        """Whether any image had a value; else `compute` gives NaN."""
        return self.num_measured > 0

    def compute(self) -> Any:
        """The mean, a scalar; NaN without an image."""
        # Only in here are the states those of all ranks.
        self._facts = self._means()
        return self._facts[self._names[0]]

    def reset(self) -> None:
        """Forgets every image."""
        super().reset()
        self._facts = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a batch and gives its own value."""
        value = super().forward(*args, **kwargs)
        self._facts = {}  # they were of this batch alone
        return value

    def _add(self, keep: Tensor, among: Tensor | None = None, **values: Tensor) -> None:
        """Adds values `(batch,)` of the images in `keep` `(batch,)`, `among` those that count."""
        self._facts = {}
        left_out = ~keep if among is None else among & ~keep
        # Not in place: states made under inference mode could not be changed outside of it.
        for name, value in values.items():
            total = getattr(self, f"{name}_sum")
            setattr(self, f"{name}_sum", total + value.where(keep, 0.0).sum().to(total))
        self.count = self.count + keep.sum().to(self.count)
        self.skipped = self.skipped + left_out.sum().to(self.skipped)

    def _means(self) -> dict[str, Tensor]:
        means = {name: getattr(self, f"{name}_sum") / self.count for name in self._names}
        return {**means, "count": self.count, "skipped": self.skipped}
