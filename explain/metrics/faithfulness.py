"""Whether the network uses what a map shows: metrics that ask it again, with pixels taken away.

They run the network in eval mode without gradient, and leave modes and random numbers as they
were. Update them outside of `with CAM(...)`, which would record their forwards.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from litcam.explain.forward.untouched import evaluating
from litcam.explain.methods.formulas import scale_maps
from litcam.explain.metrics.image_mean import ImageMean
from litcam.explain.metrics.regions import Maps, resize_maps
from litcam.explain.networks import unwrap
from litcam.explain.scores import Scored


class AverageDropIncrease(ImageMean):
    """How the class's probability changes if only what the map shows is kept.

    `average_drop` is the mean of `max(0, Y - O) / Y`, lower is better; `increase` the share of
    images with `O > Y`, higher is better; both in [0, 1], where the papers have percent. `Y` is
    the softmax probability of the image, `O` that of image times map, the map stretched to [0, 1]
    and resized to the image. Images are the normalised ones: what is masked becomes their mean
    colour, 0. One forward an image. Constant maps are skipped.

    Chattopadhay et al., "Grad-CAM++", WACV 2018, https://arxiv.org/abs/1710.11063, section 4.1.
    Equals torchcam's `ClassificationMetric` with softmax on the same maps (its own are then those
    of the probability, not of the logit); grad-cam's `DropInConfidence` does not
    divide by `Y` and takes logits.
    """

    forwards_per_image = 1

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("average_drop", "increase", **kwargs)

    def update(
        self,
        network: nn.Module,
        images: Tensor,
        maps: Tensor | Maps,
        classes: Tensor,
        probabilities: Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            network: as for `CAM`, or `Scored` where its probabilities are no softmax of logits.
            images: `(batch, channels, height, width)`, as the network takes them.
            maps: `(batch, h, w)` at any size.
            classes: `(batch,)`, the classes that `maps` explain.
            probabilities: softmax probabilities of `images`, `(batch,)` of `classes` or
                `(batch, num_classes)`; without them one more forward is needed.
        """
        heat, keep = find_heat(maps, images)
        with asking(network, images) as ask:
            before = ask.whole(images, classes, probabilities)
            after = ask(images * heat[:, None].to(images.dtype), classes)
        drop = (before - after).clamp(min=0) / before.clamp(min=1e-12)
        self._add(keep, average_drop=drop, increase=(after > before).float())

    def compute(self) -> dict[str, Tensor]:
        """`average_drop` and `increase`; NaN without an image."""
        super().compute()
        return {name: self.facts[name] for name in self._names}


class DeletionInsertion(ImageMean):
    """Areas under the class's probability while pixels go, or come, from the map's top down.

    `deletion` is lower and `insertion` higher the better the map ranks; both in [0, 1]. Softmax
    probabilities; trapezoid rule over the share of pixels changed. Equal values go in reading
    order. `steps` forwards an image and curve. Constant maps, which rank nothing, are skipped.

    Petsiuk et al., "RISE", BMVC 2018, https://arxiv.org/abs/1806.07421, section 4.3 and its
    Algorithm 1. Equals torchcam's `DeletionInsertionMetric` with softmax, the same steps and
    baseline. The paper changes 224 pixels a step, which are 224 steps at its size, and inserts
    into a blurred image with zeros around it; here the border is mirrored.

    Args:
        steps: at most this many equal parts of the image.
        baseline: what insertion starts from: `"zero"`, the mean colour of normalised images, or
            `"blur"`, the image under a Gaussian of 11 pixels. Deletion always ends at zero.
        curves: which to measure.
        kwargs: torchmetrics' own options.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        steps: int = 20,
        *,
        baseline: Literal["zero", "blur"] = "zero",
        curves: Sequence[str] = ("deletion", "insertion"),
        **kwargs: Any,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, got {steps}")
        if baseline not in ("zero", "blur"):
            raise ValueError(f'baseline must be "zero" or "blur", got {baseline!r}')
        if not curves or set(curves) - {"deletion", "insertion"}:
            raise ValueError(f'curves must be of "deletion" and "insertion", got {curves!r}')
        super().__init__(*curves, **kwargs)
        self.steps, self.baseline = steps, baseline

    @property
    def forwards_per_image(self) -> int:
        """Forwards besides the one that gives `probabilities`."""
        return self.steps * len(self._names)

    def update(
        self,
        network: nn.Module,
        images: Tensor,
        maps: Tensor | Maps,
        classes: Tensor,
        probabilities: Tensor | None = None,
    ) -> None:
        """Adds a batch; arguments as for `AverageDropIncrease`."""
        heat, keep = find_heat(maps, images)
        order = rearrange(heat, "b h w -> b (h w)").argsort(dim=1, descending=True, stable=True)
        ranks = rearrange(order.argsort(dim=1), "b (h w) -> b 1 h w", h=heat.shape[1])
        pixels = order.shape[1]
        counts = [*range(0, pixels, -(-pixels // self.steps)), pixels]
        shares = torch.tensor(counts, dtype=torch.float32, device=images.device) / pixels
        areas = {}
        with asking(network, images) as ask:
            whole = ask.whole(images, classes, probabilities)
            if "deletion" in self._names:
                zero = images.new_zeros(())
                rest = [ask(images.where(ranks >= n, zero), classes) for n in counts[1:]]
                areas["deletion"] = torch.trapezoid(torch.stack([whole, *rest], 1), shares)
            if "insertion" in self._names:
                start = self._start(images)
                rest = [ask(images.where(ranks < n, start), classes) for n in counts[:-1]]
                areas["insertion"] = torch.trapezoid(torch.stack([*rest, whole], 1), shares)
        self._add(keep, **areas)

    def compute(self) -> dict[str, Tensor]:
        """The mean area of each curve; NaN without an image."""
        super().compute()
        return {name: self.facts[name] for name in self._names}

    def _start(self, images: Tensor) -> Tensor:
        if self.baseline == "zero":
            return torch.zeros_like(images)
        blurred: Tensor = gaussian_blur(images, [11, 11], [5.0, 5.0])
        return blurred


class Asking:
    """Probabilities of one class an image; see `asking`."""

    def __init__(self, network: Scored) -> None:
        self._network = network

    def __call__(self, images: Tensor, classes: Tensor) -> Tensor:
        """Of `classes` `(batch,)`, in one forward.

        Raises:
            ValueError: the network gives no logits.
        """
        probabilities: Tensor = self._network(images)
        return probabilities.gather(1, classes[:, None])[:, 0]

    def whole(self, images: Tensor, classes: Tensor, probabilities: Tensor | None) -> Tensor:
        """The same of the whole images, without a forward if `probabilities` are known."""
        if probabilities is None:
            return self(images, classes)
        if probabilities.ndim == 2:
            probabilities = probabilities.gather(1, classes[:, None])[:, 0]
        return probabilities.float()


@contextmanager
def asking(network: nn.Module, images: Tensor) -> Iterator[Asking]:
    """The network in eval mode without gradient; afterwards each mode and the RNG are as before."""
    # DistributedDataParallel's own forward would wait for the other ranks.
    network = unwrap(network)
    with evaluating(network, images.device), torch.no_grad():
        yield Asking(network if isinstance(network, Scored) else Scored(network))


def find_heat(maps: Tensor | Maps, images: Tensor) -> tuple[Tensor, Tensor]:
    """Maps stretched to [0, 1] at their own size and then resized; which are not constant.

    Args:
        maps: `(batch, h, w)` at any size.
        images: `(batch, channels, height, width)`.

    Returns:
        `(batch, height, width)`, and `(batch,)` of bool.

    Raises:
        ValueError: not one map an image.
    """
    maps = Maps.of(maps)
    if images.ndim != 4 or len(images) != len(maps):
        raise ValueError(
            f"images must be (batch, channels, height, width) with one map each, "
            f"got {tuple(images.shape)} and maps {tuple(maps.units.shape)}"
        )
    stretched = scale_maps(maps.units, (maps.units.shape[1], maps.units.shape[2]))
    return resize_maps(stretched, (images.shape[2], images.shape[3])), ~maps.constant
