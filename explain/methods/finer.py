"""FinerCAM: what speaks for a class and not for those that look alike."""

from torch import Tensor

# How many classes are compared with.
NUM_OTHERS = 3


def finer_scores(
    logits: Tensor, classes: Tensor, alpha: float = 1.0, num_others: int = NUM_OTHERS
) -> Tensor:
    """The class's logit minus those of its likeliest neighbours, weighted by their probability.

    Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual
    Explanation", CVPR 2025, https://arxiv.org/abs/2501.11309. As in grad-cam, the neighbours are
    the classes whose logits are nearest to the class's own, and the weights are differentiated too.

    Args:
        logits: `(batch, num_classes)`, in their graph.
        classes: `(batch,)`.
        alpha: the share of the neighbours that is taken away; 0 leaves the class alone.
        num_others: how many neighbours at most.

    Returns:
        `(batch,)`; of a single class, its logit.

    Example:
        >>> import torch
        >>> finer_scores(torch.tensor([[3.0, 2.0, -9.0]]), torch.tensor([0]), num_others=1)
        tensor([1.])
    """
    own = logits.gather(1, classes[:, None])
    distance = (logits - own).detach().abs().scatter(1, classes[:, None], -1.0)
    nearest = distance.argsort(dim=1, stable=True)[:, 1 : num_others + 1]
    if not nearest.shape[1]:
        return own[:, 0]
    weights = logits.softmax(1).gather(1, nearest)
    difference = (weights * (own - alpha * logits.gather(1, nearest))).sum(1)
    return difference / (weights.sum(1) + 1e-9)
