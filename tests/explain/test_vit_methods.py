"""LeGrad and LibraGrad on every kind of timm ViT, against second formulas in float64."""

import copy

import pytest
import timm
import torch
from timm.layers import Attention
from torch import nn

from litcam.callbacks import GradCAM
from litcam.explain import CAM, find_target_layer
from litcam.explain.methods.libra import LibraGrad
from litcam.lightning_modules import Classifier

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
# Name, what it is made with besides, and how its head takes the tokens.
VITS = [
    ("vit_tiny_patch16_224", {}, "token"),
    ("deit3_small_patch16_224", {}, "token"),  # LayerScale
    ("deit_tiny_distilled_patch16_224", {}, "token"),
    ("vit_small_patch14_reg4_dinov2", {}, "token"),  # registers
    ("vit_giant_patch14_dinov2", {"mlp_ratio": 4}, "token"),  # SwiGLU
    ("vit_base_patch16_clip_quickgelu_224", {}, "token"),
    ("eva02_base_patch16_clip_224", {}, "token"),  # rotary, SwiGLU with a norm inside
    ("vit_small_patch16_rope_mixed_ape_224", {}, "token"),
    ("vit_medium_patch16_reg4_gap_256", {}, "avg"),
    ("vit_wee_patch16_reg1_gap_256", {}, "avg"),  # LayerScale, in parallel blocks below
    ("vit_pwee_patch16_reg1_gap_256", {}, "avg"),
    ("vit_base_patch16_siglip_gap_224", {}, "avg"),
    ("vit_small_plus_patch16_dinov3", {}, "avg"),
    ("eva02_tiny_patch14_336", {}, "avg"),
    ("beitv2_base_patch16_224", {}, "avg"),
    ("vit_relpos_small_patch16_224", {}, "avg"),
    ("vit_relpos_base_patch32_plus_rpn_256", {}, "avg"),  # norms after attention and MLP
    ("naflexvit_base_patch16_gap", {}, "avg"),
]
CLASSES = torch.tensor([1, 3])
QUICK = ("vit_tiny_", "vit_giant", "eva02_base", "vit_medium", "vit_base_patch16_clip")
vits = pytest.mark.parametrize(
    ("name", "options", "pool"),
    [
        pytest.param(*row, id=row[0], marks=() if row[0].startswith(QUICK) else pytest.mark.slow)
        for row in VITS
    ],
)


def make(name, options):
    cells = int(name.split("_patch")[1][:2])
    network = timm.create_model(name, **{**SMALL, **options, "img_size": 4 * cells}).eval()
    # Gates and scales that are all alike hide mistakes.
    for key, parameter in network.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, float("weight" in key or "gamma" in key), 0.3)
    return network, torch.randn(2, 3, 4 * cells, 4 * cells)


def explain(network, images, method):
    with CAM(network, method) as cam, torch.inference_mode():
        logits = network(images)
    assert not cam.failure
    return cam, logits


@vits
@pytest.mark.parametrize("method", ["legrad", "libragrad"])
def test_logits_are_those_of_a_plain_forward(name, options, pool, method):
    network, images = make(name, options)
    with torch.inference_mode():
        expected = network(images)
    before = copy.deepcopy(network.state_dict())
    cam, logits = explain(network, images, method)
    assert torch.equal(logits, expected)
    maps = cam([[1, 3], [0, 2]])
    assert maps.shape == (2, 2, 4, 4)
    assert (maps.amax((2, 3)) > maps.amin((2, 3))).any()
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


@vits
def test_legrad_is_the_gradient_of_each_attention(name, options, pool):
    network, images = make(name, options)
    network, images = network.double(), images.double()
    maps = explain(network, images, "legrad")[0](CLASSES)
    expected = differentiate_attention(network, images, pool)
    assert (maps - expected).abs().max() < 1e-5 * expected.max()


def differentiate_attention(network, images, pool):
    """The paper's formula with every attention matrix made, by the unfused path of timm."""
    attention, tokens = [], []
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
        if hasattr(module, "attn_drop"):
            module.attn_drop.register_forward_hook(lambda m, args, out: attention.append(out))
    for block in network.blocks:
        block.register_forward_hook(lambda m, args, out: tokens.append(out))
    network(images)
    maps = 0
    first = network.num_prefix_tokens
    for matrix, after in zip(attention, tokens, strict=True):
        if pool == "token":
            features = network.norm(after.mean(1))
        else:
            features = network.norm(after)[:, first:].mean(1)
        features = network.fc_norm(features)
        answers = network.head(features)
        if hasattr(network, "head_dist"):
            answers = (answers + network.head_dist(features)) / 2
        score = answers[torch.arange(2), CLASSES].sum()
        (gradient,) = torch.autograd.grad(score, matrix, retain_graph=True)
        maps = maps + gradient.clamp(min=0).mean((1, 2))
    return (maps / len(tokens))[:, first:].unflatten(1, (4, 4)).float()


@vits
def test_libragrad_is_complete(name, options, pool):
    network, images = make(name, options)
    network, images = network.double(), images.double()
    watch = LibraGrad(network)
    with watch.watching(images):
        logits = network(images)
    start = watch._start[0]
    scores = logits[torch.arange(2), CLASSES]
    biases = find_biases(network)
    for image in range(2):
        gradient, *others = torch.autograd.grad(
            scores[image], [start, *biases], retain_graph=True, allow_unused=True
        )
        pairs = zip([start, *biases], [gradient, *others], strict=True)
        explained = sum(float((x * g).detach().sum()) for x, g in pairs if g is not None)
        assert explained == pytest.approx(float(scores[image].detach()), rel=1e-9, abs=1e-9)


def find_biases(network):
    """Those behind the first block's input."""
    parts = ("blocks.", "norm.", "fc_norm.", "head")
    named = network.named_parameters()
    return [p for key, p in named if key.endswith("bias") and key.startswith(parts)]


def test_the_plain_gradient_is_not_complete():
    network, images = make("vit_tiny_patch16_224", {})
    network, images, kept = network.double(), images.double(), []
    network.blocks[0].register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    score = network(images)[0, 1]
    biases = find_biases(network)
    gradients = torch.autograd.grad(score, [kept[0], *biases])
    pairs = zip([kept[0], *biases], gradients, strict=True)
    explained = sum(float((x * g).detach().sum()) for x, g in pairs)
    assert explained != pytest.approx(float(score.detach()), rel=0.1)


def test_libragrad_is_the_gradient_of_a_network_with_fixed_gates():
    """The same, of a ViT written out with the numbers of its plain forward as constants."""
    network, images = make("vit_tiny_patch16_224", {})
    network, images = network.double(), images.double()
    layer = find_target_layer(network, images)
    maps = explain(network, images, "libragrad")[0](CLASSES)
    kept = []
    network.blocks[0].register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    with torch.no_grad():
        network(images)
    x = kept[0].requires_grad_()
    y = x
    for block in network.blocks:
        y = y + attend(block.attn, norm(block.norm1, y))
        hidden = block.mlp.fc1(norm(block.norm2, y))
        gate = 0.5 * (1 + torch.erf(hidden.detach() / 2**0.5))
        y = y + block.mlp.fc2(hidden * gate)
    logits = network.head(norm(network.norm, y)[:, 0])
    torch.testing.assert_close(logits, network(images), rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(logits[torch.arange(2), CLASSES].sum(), x)
    expected = layer.layout.to_maps((x * gradient).detach()).sum(1).relu().float()
    assert (maps - expected).abs().max() < 1e-6 * expected.max()


def norm(module, x):
    spread = x.detach().var(-1, unbiased=False, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) / (
        spread + module.eps
    ).sqrt() * module.weight + module.bias


def attend(module: Attention, x):
    batch, num_tokens, width = x.shape
    qkv = module.qkv(x).view(batch, num_tokens, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv
    weights = (query @ key.mT * module.scale).softmax(-1).detach()
    return module.proj((weights @ value).transpose(1, 2).reshape(batch, num_tokens, width))


def test_fused_and_unfused_attention_give_the_same_map():
    network, images = make("vit_tiny_patch16_224", {})
    for method in ("legrad", "libragrad"):
        fused = explain(network, images, method)[0](CLASSES)
        for block in network.blocks:
            block.attn.fused_attn = False
        plain = explain(network, images, method)[0](CLASSES)
        assert (fused - plain).abs().max() < 1e-5 * plain.max()
        for block in network.blocks:
            block.attn.fused_attn = True


def test_legrad_leaves_other_methods_as_they_are():
    network, images = make("vit_tiny_patch16_224", {})
    with CAM(network) as plain, torch.no_grad():
        network(images)
    cam = explain(network, images, "legrad")[0]
    assert torch.equal(cam(CLASSES, method="gradcam"), plain(CLASSES))
    assert (cam.target_layer.name, cam.made_at.name) == ("blocks.1.norm1", "blocks")
    with pytest.raises(ValueError, match="named before the forward: CAM"):
        plain(CLASSES, method="legrad")
    libra = explain(network, images, "libragrad")[0]
    with pytest.raises(ValueError, match="'gradcam' needs plain gradients"):
        libra(CLASSES, method="gradcam")


REFUSED = [
    ("resnet10t", {}, "and ResNet has none"),
    ("swin_tiny_patch4_window7_224", {"depths": (1, 1)}, "SwinTransformer has none"),
    ("hiera_tiny_224", {}, "Hiera has none"),
    ("vit_base_patch16_siglip_224", {**SMALL, "img_size": 64}, "pools them by 'map'"),
]


@pytest.mark.parametrize(("name", "options", "why"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_network_that_it_is_not_made_for_is_refused_at_once(name, options, why):
    with pytest.raises(ValueError, match=why) as error:
        CAM(timm.create_model(name, **options), "legrad")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("xcit_nano_12_p8_224", {"img_size": 64, "depth": 1}, "all 64 tokens to attend to all"),
        ("cait_xxs24_224", {"img_size": 64, "depth": 1}, "saw no attention by softmax in block 0"),
        ("vit_dwee_patch16_reg1_gap_256", {**SMALL, "img_size": 64}, "difference of two attention"),
    ],
)
def test_another_attention_is_told_from_the_forward(name, options, why):
    network, images = timm.create_model(name, **options).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
    with CAM(network, "legrad") as cam, torch.no_grad():
        assert torch.equal(network(images), expected)
    assert why in cam.failure


def test_what_follows_the_head_is_told():
    network, images = make("vit_tiny_patch16_224", {})
    more = nn.Sequential(network, nn.Linear(5, 5))
    with CAM(more, "legrad") as cam, torch.no_grad():
        more(images)
    assert "that is not what this network answers" in cam.failure


def test_a_run_is_refused_before_it_starts(tmp_path):
    from lightning.pytorch import Trainer

    from litcam.datamodules import SyntheticDataModule

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=1, callbacks=[GradCAM(method="legrad")], accelerator="cpu", **quiet
    )
    module = Classifier("resnet10t", num_classes=8)
    data = SyntheticDataModule(num_train=8, num_val=4, image_size=64, batch_size=4)
    with pytest.raises(ValueError, match="'legrad' is made for the blocks of a timm ViT"):
        trainer.fit(module, data)
    assert trainer.global_step == 0


def test_a_layer_and_all_blocks_are_two_wishes():
    network, _ = make("vit_tiny_patch16_224", {})
    with pytest.raises(ValueError, match=r"looks at the attention .*leave target_layer"):
        CAM(network, "legrad", "blocks.0")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["legrad", "libragrad", "finercam"])
def test_a_validation_is_explained(method, tmp_path):
    from lightning.pytorch import Trainer

    from litcam.datamodules import SyntheticDataModule

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callback = GradCAM(2, method)
    trainer = Trainer(callbacks=[callback], accelerator="cpu", default_root_dir=tmp_path, **quiet)
    small = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}
    module = Classifier("vit_tiny_patch16_224", num_classes=8, backbone_args=small)
    data = SyntheticDataModule(num_train=8, num_val=8, image_size=64, batch_size=4)
    trainer.validate(module, data, verbose=False)
    assert trainer.callback_metrics["val/gradcam/energy_inside"] > 0
    records = (tmp_path / "gradcam" / "images.jsonl").read_text()
    assert f'"method": "{method}"' in records
    assert '"layer": "backbone.blocks' in records
