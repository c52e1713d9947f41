"""What the metrics of maps have in common: means over images, some of them left out."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ImageMean(Metric):
    """Means over images of some values; images without a value are left out and counted.

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
    def num_skipped(self) -> int:
        """Images left out: of all ranks once `compute` ran, of this one before."""
        return int(self._known()["num_skipped"])

    @property
    def num_measured(self) -> int:
        """Images with a value, as for `num_skipped`."""
        return int(self._known()["count"])

    @property
    def has_value(self) -> bool:
        """Whether any image had a value, as for `num_skipped`; else `compute` gives NaN."""
        return self.num_measured > 0

    def compute(self) -> Any:
        """The mean, a scalar; NaN without an image."""
        # Only in here are the states those of all ranks.
        self._facts = self._means()
        return self._facts[self._names[0]]

    def _add(self, keep: Tensor, **values: Tensor) -> None:
        """Adds values `(batch,)` of the images in `keep` `(batch,)`."""
        # Not in place: states made under inference mode could not be changed outside of it.
        for name, value in values.items():
            total = getattr(self, f"{name}_sum")
            setattr(self, f"{name}_sum", total + value.where(keep, 0.0).sum().to(total))
        self.count = self.count + keep.sum().to(self.count)
        self.skipped = self.skipped + (~keep).sum().to(self.skipped)

    def _means(self) -> dict[str, Tensor]:
        means = {name: getattr(self, f"{name}_sum") / self.count for name in self._names}
        return {**means, "count": self.count, "num_skipped": self.skipped}

    def _known(self) -> dict[str, Tensor]:
        return self._means() if self._computed is None else self._facts
