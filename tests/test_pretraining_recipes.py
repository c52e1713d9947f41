"""What the pretraining configs build, against what was published, row by row.

The sources are the papers (MAE, arXiv:2111.06377; SimMIM, arXiv:2111.09886) and their authors' code
(facebookresearch/mae, microsoft/SimMIM). docs/recipes.md has the same rows for people.
"""

import math

import pytest
import torch

from litcam.lightning_modules import MAE

# Standard deviation of initial weights. Xavier's uniform is √(2 / (inputs + outputs)), and the
# patch embedding and the joint matrix of queries, keys and values are one matrix each
# (`initialize_weights` of models_mae.py).
SPREAD_OF_VIT = {
    "patch_embed.proj.weight": math.sqrt(2 / (768 + 768)),  # .0361
    "blocks.0.attn.qkv.weight": math.sqrt(2 / (768 + 3 * 768)),  # .0255
    "blocks.11.attn.proj.weight": math.sqrt(2 / (768 + 768)),  # .0361
    "blocks.5.mlp.fc1.weight": math.sqrt(2 / (768 + 4 * 768)),  # .0228
    "blocks.5.mlp.fc2.weight": math.sqrt(2 / (4 * 768 + 768)),  # .0228
    "cls_token": 0.02,
}


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return MAE("vit_base_patch16_224", decoder_dim=512, decoder_depth=8)


@pytest.mark.parametrize(("name", "spread"), SPREAD_OF_VIT.items())
def test_a_fresh_vit_spreads_as_published(vit, name, spread):
    weight = vit.encoder.get_parameter(name).detach()
    scatter = 4 / math.sqrt(2 * weight.numel())  # four standard errors of a normal's
    assert weight.std().item() == pytest.approx(spread, rel=scatter)
    assert abs(weight.mean().item()) < 4 * spread / math.sqrt(weight.numel())
    if name != "cls_token":  # uniform: nothing beyond √3 standard deviations
        assert weight.abs().max().item() == pytest.approx(math.sqrt(3) * spread, rel=1e-3)


def test_what_is_no_matrix_of_a_fresh_vit_is_zero_or_one(vit):
    for name, weight in vit.encoder.named_parameters():
        # The patch embedding's own is what torch gives a convolution, there as well.
        if weight.ndim == 1 and name != "patch_embed.proj.bias":
            value = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert (weight == value).all(), name
