"""ROAD: whether the network uses what a map shows, with pixels imputed instead of blanked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from litcam.explain.metrics.faithfulness import asking, find_heat
from litcam.explain.metrics.image_mean import ImageMean
from litcam.explain.metrics.regions import Maps


class ROAD(ImageMean):
    """How the class's probability changes while pixels are imputed from the ones around them.

    Imputed pixels are no blank patch that the network was never trained on, and their shape tells
    less of what was there. `road_morf` is the mean change with the most relevant pixels gone, over
    the percentiles, and lower is better; `road_lerf` that with the least relevant gone, higher is
    better; `road` is `(road_lerf - road_morf) / 2`, higher is better. All in [-1, 1], of softmax
    probabilities. Constant maps, which rank nothing, are skipped.

    Rong, Leemann et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
    ICML 2022, https://arxiv.org/abs/2202.00449. The equations are set up by grad-cam.
    Equals its `ROADCombined` with softmax and without noise, for maps of the images' size whose
    values all differ. Where many are equal, as the zeros of a map after its ReLU, grad-cam takes
    all of them away at once, up to the whole image; here the exact share goes, equal values in
    reading order. Its noise is drawn anew in every call; here every image gets the same.

    Costs two forwards and two sparse solves an image and percentile. The solves run one image at a
    time on the CPU and mostly outweigh the forwards: all 18 of an image of 224 x 224 take four to
    five seconds of one core.

    Args:
        percentiles: shares of the pixels that stay, in percent.
        noise: standard deviation of what is added to imputed pixels, in units of the normalised
            images; as in the authors' code.
        seed: of the noise.
        kwargs: torchmetrics' own options.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        percentiles: Sequence[float] = (10, 20, 30, 40, 50, 60, 70, 80, 90),
        *,
        noise: float = 0.01,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if not percentiles or not all(0 < percentile < 100 for percentile in percentiles):
            raise ValueError(f"percentiles must be in (0, 100), got {percentiles!r}")
        if noise < 0:
            raise ValueError(f"noise must be 0 or more, got {noise}")
        super().__init__("road", "road_morf", "road_lerf", **kwargs)
        self.percentiles, self.noise, self.seed = tuple(percentiles), noise, seed

    @property
    def forwards_per_image(self) -> int:
        """Forwards besides the one that gives `probabilities`."""
        return 2 * len(self.percentiles)

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
        changes = {"morf": images.new_zeros(len(images), dtype=torch.float32)}
        changes["lerf"] = changes["morf"].clone()
        if keep.any():
            # A map that is left out shall not cost its solves.
            classes = classes.to(images.device)
            heat, images, classes = heat[keep], images[keep], classes[keep]
            probabilities = None if probabilities is None else probabilities[keep]
            with asking(network, images) as ask:
                whole = ask.whole(images, classes, probabilities)
                for name, change in changes.items():
                    ranks = _rank(heat, most_first=name == "morf")
                    scores = [
                        ask(self._impute(images, ranks, gone), classes)
                        for gone in self._gone(ranks)
                    ]
                    change[keep] = torch.stack(scores).mean(0) - whole
        road = (changes["lerf"] - changes["morf"]) / 2
        self._add(keep, road=road, road_morf=changes["morf"], road_lerf=changes["lerf"])

    def compute(self) -> dict[str, Tensor]:
        """`road`, `road_morf` and `road_lerf`; NaN without an image."""
        super().compute()
        return {name: self.facts[name] for name in self._names}

    def _gone(self, ranks: Tensor) -> list[int]:
        """How many pixels to take away at each percentile, as NumPy's percentile counts them."""
        pixels = ranks[0].numel()
        return [pixels - int(np.ceil((pixels - 1) * at / 100)) for at in self.percentiles]

    def _impute(self, images: Tensor, ranks: Tensor, gone: int) -> Tensor:
        """Images `(batch, channels, height, width)` without their first `gone` pixels."""
        known = (ranks >= gone).cpu()
        filled = [_solve(*pair) for pair in zip(images.float().cpu(), known, strict=True)]
        # One field for all: what an image scores depends on neither its batch nor its process.
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(images.shape[1:], generator=generator, dtype=torch.float32)
        rough = torch.stack(filled) + self.noise * noise
        return images.where(known[:, None].to(images.device), rough.to(images))


def _rank(heat: Tensor, *, most_first: bool) -> Tensor:
    """Places `(batch, height, width)` of the pixels in the order of their heat."""
    flat = rearrange(heat, "batch height width -> batch (height width)")
    order = flat.argsort(dim=1, descending=most_first, stable=True)
    return rearrange(order.argsort(dim=1), "b (h w) -> b h w", h=heat.shape[1])


def _solve(image: Tensor, known: Tensor) -> Tensor:
    """An image `(channels, height, width)`, each pixel not `known` the mean of those around it."""
    # Imported here: grad-cam takes a second, and few runs ask for this metric.
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer, neighbors_weights
    from scipy.sparse.linalg import splu

    pixels, mask = image.numpy(), known.numpy()
    system, right = NoisyLinearImputer.setup_sparse_system(
        mask.astype(np.float32), pixels, neighbors_weights
    )
    # The system is symmetric; SciPy's default, for any matrix, takes half as long again.
    factors = splu(
        system.tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    filled = pixels.copy()
    filled[:, ~mask] = factors.solve(right).T
    return torch.from_numpy(filled)
