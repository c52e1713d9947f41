"""Whether a map depends on what the network has learned: a sanity check."""

import copy
from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from litcam.explain.cam import CAM
from litcam.explain.forward.untouched import same_random_numbers
from litcam.explain.layers.layout import TargetLayer, find_module
from litcam.explain.networks import unwrap


def randomisation_check(
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    method: str = "gradcam",
    target_layer: str | nn.Module | TargetLayer | None = None,
    *,
    stages: Sequence[str] | None = None,
    seed: int = 0,
) -> list[tuple[str, float]]:
    """Spearman's rank correlation of maps before and after the network forgets, stage by stage.

    Stages are drawn anew one after the other, from the logits down, and stay so (cascading). The
    correlation, in [-1, 1], must fall: a map that stays the same shows the image, not the network.
    In a ReLU'd map many values are equal; equal values share their mean rank, as in SciPy. Each
    value is a mean over images; an image whose first map is flat is left out, one whose later map
    is flat counts 0. One CAM an image and stage. Works on a copy; random numbers are untouched.

    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018,
    https://arxiv.org/abs/1810.03292, section 3.1; the correlation is checked against SciPy's.

    Args:
        network: as for `CAM`; the classifier itself, not a LightningModule with its trainer.
        images: `(batch, channels, height, width)`.
        classes: `(batch,)`, the classes to explain.
        method: a name in `litcam.explain.METHODS`.
        target_layer: as for `CAM`; found once and kept.
        stages: dotted names in the order they are drawn anew; by default the parts of the network
            that have parameters, its sequences taken apart, from the last registered to the first.
        seed: of the new parameters.

    Returns:
        `(stage, correlation)` for each; NaN if every first map is flat.

    Raises:
        ValueError: a stage or the target layer does not exist.
    """
    network = unwrap(network)
    if isinstance(target_layer, nn.Module):
        target_layer = find_module(network, target_layer)[0]
    elif isinstance(target_layer, TargetLayer):
        target_layer = target_layer.name
    if stages is None:
        stages = [name for name, _ in _find_stages(network)][::-1]
    chosen = [find_module(network, name)[0] for name in stages]
    results = []
    with same_random_numbers(images.device):
        torch.manual_seed(seed)
        network = copy.deepcopy(network).eval()
        first, layer = _explain(network, images, classes, method, target_layer)
        for stage in chosen:
            _forget(network.get_submodule(stage))
            maps, _ = _explain(network, images, classes, method, layer)
            results.append((stage, _mean_correlation(first, maps)))
    return results


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation `(batch,)` of maps `(batch, height, width)`; NaN for flat ones.

    Equal values share their mean rank. Checked against `scipy.stats.spearmanr`.

    >>> rank_correlation(torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[[3.0, 2.0, 1.0]]]))
    tensor([-1.])
    """
    a, b = (_rank(rearrange(maps, "b h w -> b (h w)").contiguous()) for maps in (first, second))
    product = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return product.clamp(-1, 1)


def _rank(values: Tensor) -> Tensor:
    """Ranks `(batch, n)` around 0, equal values at their mean."""
    line = values.sort(dim=1).values
    low, high = (torch.searchsorted(line, values, right=right) for right in (False, True))
    return (low + high - values.shape[1]).float() / 2


def _mean_correlation(first: Tensor, second: Tensor) -> float:
    whole = (first.amax((1, 2)) > first.amin((1, 2))) & first.isfinite().all(2).all(1)
    correlation = rank_correlation(first[whole], second[whole].nan_to_num())
    return float(correlation.nan_to_num().mean())


def _explain(
    network: nn.Module, images: Tensor, classes: Tensor, method: str, layer: str | None
) -> tuple[Tensor, str]:
    """Maps `(batch, height, width)`, and the layer they are made at."""
    with CAM(network, method, layer) as cam, torch.no_grad():
        network(images)
    maps = cam(classes)
    assert cam.target_layer is not None
    return maps, cam.target_layer.name


def _find_stages(
    network: nn.Module, name: str = "", wrapped: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """Children with parameters; sequences and what only wraps the network are taken apart."""
    children = [
        (f"{name}.{key}".lstrip("."), child)
        for key, child in network.named_children()
        if next(child.parameters(), None) is not None
    ]
    for path, child in children:
        sequence = isinstance(child, nn.Sequential | nn.ModuleList)
        lone = wrapped and len(children) == 1 and next(child.children(), None) is not None
        if sequence or lone:
            yield from _find_stages(child, path, not sequence)
        else:
            yield path, child


def _forget(stage: nn.Module) -> None:
    """Draws every parameter of `stage` anew, as PyTorch initialises it where it does."""
    for module in stage.modules():
        reset = getattr(module, "reset_parameters", None)
        own = list(module.parameters(recurse=False))
        if callable(reset) and own:
            reset()
            continue
        for parameter in own:
            # Class tokens, positions, layer scales: only their spread says what size is sane.
            spread = parameter.detach().float()
            deviation = float(spread.std()) if spread.numel() > 1 else 0.0
            nn.init.normal_(parameter, float(spread.mean()), deviation)
