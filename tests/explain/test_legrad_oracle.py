"""LeGrad beside its authors' own package, on one network in two implementations.

`pip install --no-deps legrad-torch open_clip_torch ftfy regex` (its own pin of open_clip is old).
"""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from litcam.explain import CAM

open_clip = pytest.importorskip("open_clip")
legrad = pytest.importorskip("legrad")


class Cosine(nn.Module):
    """Similarities to texts, which are CLIP's classes."""

    def __init__(self, head, texts):
        super().__init__()
        self.head, self.texts = head, texts

    def forward(self, features):
        return F.normalize(self.head(features), dim=-1) @ self.texts.T


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_all_layers_of_a_clip_vit_with_random_weights():
    torch.manual_seed(0)
    texts, image = F.normalize(torch.randn(3, 512), dim=-1), torch.randn(1, 3, 224, 224)
    theirs = open_clip.create_model("ViT-B-32", pretrained=None, precision="fp32").eval()
    ours = timm.create_model("vit_base_patch32_clip_224", num_classes=512).eval()
    ours.load_state_dict(checkpoint_filter_fn(dict(theirs.state_dict()), ours))
    with torch.no_grad():
        assert torch.allclose(ours(image), theirs.encode_image(image), atol=1e-5)
    ours.head = Cosine(ours.head, texts)
    expected = legrad.LeWrapper(theirs, layer_index=0).compute_legrad_clip(texts, image)[0]
    with CAM(ours, "legrad") as cam, torch.no_grad():
        ours(image)
    maps = cam([[0, 1, 2]])
    maps = F.interpolate(maps, scale_factor=32, mode="bilinear")
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    assert ((maps - low) / (high - low) - expected).abs().max() < 1e-5
