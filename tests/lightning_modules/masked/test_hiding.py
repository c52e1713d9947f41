"""Nothing leaks from hidden cells, and nothing of the hiding stays in the encoder."""

import copy

import pytest
import timm
import torch

from litcam.lightning_modules import MAE
from litcam.lightning_modules.masked.hiding import DropTokens, find_hiding

VIT = {"img_size": 64, "depth": 2}
SWIN = {
    "img_size": 64,
    "window_size": 2,
    "embed_dim": 16,
    "depths": (2, 1, 1, 2),
    "num_heads": (1, 2, 2, 4),
    "drop_path_rate": 0.0,
}
RESNET = {"channels": (8, 16, 16, 24)}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit, registers": ("vit_little_patch16_reg4_gap_256", {**VIT, "embed_dim": 64, "num_heads": 2}),
    "vit, class token and registers": (
        "vit_small_patch14_reg4_dinov2",
        {**VIT, "patch_size": 16, "embed_dim": 64, "num_heads": 2},
    ),
    "vit, average": ("vit_tiny_patch16_224", {**VIT, "global_pool": "avg"}),
    "deit, distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swinv2": ("swinv2_tiny_window8_256", SWIN),
    "resnet": ("resnet10t", RESNET),
    "convnext": ("convnext_atto", CONVNEXT),
    "convnextv2": ("convnextv2_atto", CONVNEXT),
    "convnextv2, channels last": ("convnextv2_atto", {**CONVNEXT, "conv_mlp": False}),
    "efficientnet": ("efficientnet_b0", {}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "regnety": ("regnety_002", {}),
    "repvgg": ("repvgg_a0", {}),
}
ONE_OF_EACH = ["vit", "swin", "resnet", "convnextv2", "efficientnet"]


def create(case):
    """Make a timm encoder, how cells are hidden from it, and its rows of cells."""
    torch.manual_seed(0)
    name, args = FAMILIES[case]
    encoder = timm.create_model(name, num_classes=0, **args)
    with torch.no_grad():
        for key, weight in encoder.named_parameters():
            if "grn" in key or "gamma" in key:  # timm starts them at what does nothing
                weight.uniform_(0.5, 1)
        norms = [m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:  # else the signal dies away in eval, and any check of it passes
            norm.weight.uniform_(0.5, 1.5)
            norm.momentum = 1.0
        if norms:
            encoder(torch.randn(4, 3, 64, 64))
        for norm in norms:
            norm.momentum = 0.1
    hiding = find_hiding(encoder, name)
    rows = 4 if hiding is DropTokens else 2
    return encoder, hiding(encoder, (rows, rows)), rows


def choose(batch, rows):
    ids = torch.rand(batch, rows * rows).argsort(dim=1)
    count = rows * rows // 2
    return ids[:, :count], ids[:, count:]


def write(images, ids, rows, value):
    """Write into the pixels of the cells ``ids``, cell by cell."""
    images, side = images.clone(), images.shape[2] // rows
    for image, cells in zip(images, ids.tolist(), strict=True):
        for cell in cells:
            top, left = cell // rows * side, cell % rows * side
            square = image[:, top : top + side, left : left + side]
            square.copy_(torch.randn_like(square) * value)
    return images


def visible_tokens(encoder, hiding, images, ids, *, training):
    encoder = copy.deepcopy(encoder).train(training)
    tokens = hiding(encoder, images, *ids)
    return tokens[:, : tokens.shape[1] - (ids[1].shape[1] if hiding.shows_hidden else 0)]


@pytest.mark.parametrize("case", FAMILIES)
def test_hidden_pixels_change_no_visible_feature_and_visible_ones_do(case):
    encoder, hiding, rows = create(case)
    images, ids = torch.randn(2, 3, 64, 64), choose(2, rows)
    for training in (True, False):
        tokens = visible_tokens(encoder, hiding, images, ids, training=training)
        assert tokens.isfinite().all() and tokens.std() > 1e-3
        for value in (0, 1, 1e6):
            changed = write(images, ids[1], rows, value)
            assert not torch.equal(changed, images)
            seen = visible_tokens(encoder, hiding, changed, ids, training=training)
            assert torch.equal(seen, tokens)
        changed = write(images, ids[0][:, :1], rows, 1)
        seen = visible_tokens(encoder, hiding, changed, ids, training=training)
        place = getattr(encoder, "num_prefix_tokens", 0)
        assert (seen[:, place] - tokens[:, place]).abs().max() > 1e-4


@pytest.mark.parametrize("case", ["resnet", "efficientnet", "mobilenetv3", "regnety", "repvgg"])
def test_hidden_pixels_change_no_running_statistic(case):
    encoder, hiding, rows = create(case)
    images, ids = torch.randn(2, 3, 64, 64), choose(2, rows)
    twin = copy.deepcopy(encoder)
    before = copy.deepcopy(encoder.state_dict())
    hiding(encoder, images, *ids)
    hiding(twin, write(images, ids[1], rows, 1e6), *ids)
    means = [name for name in before if name.endswith("running_mean")]
    assert means
    for name in means:
        assert not torch.equal(before[name], encoder.state_dict()[name]), name
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


@pytest.mark.parametrize("case", ["resnet", "mobilenetv3", "vit", "swin"])
def test_hidden_pixels_get_no_gradient(case):
    encoder, hiding, rows = create(case)
    images, ids = torch.randn(2, 3, 64, 64, requires_grad=True), choose(2, rows)
    tokens = visible_tokens(encoder, hiding, images, ids, training=True)
    (gradient,) = torch.autograd.grad((tokens * torch.randn_like(tokens)).sum(), images)
    hidden = write(torch.zeros(2, 3, 64, 64), ids[1], rows, 1) != 0
    assert hidden.float().mean() == 0.5
    assert not gradient[hidden].any() and (gradient[~hidden] != 0).float().mean() > 0.9


@pytest.mark.parametrize("case", ["vit", "deit, distilled", "resnet", "swin"])
def test_tokens_come_in_the_order_of_the_cells_asked_for(case):
    encoder, hiding, rows = create(case)
    encoder.eval()
    images, (keep, hidden) = torch.randn(2, 3, 64, 64), choose(2, rows)
    tokens = hiding(encoder, images, keep, hidden)
    turned = hiding(encoder, images, keep.flip(1), hidden)
    first = getattr(encoder, "num_prefix_tokens", 0)
    last = first + keep.shape[1]
    torch.testing.assert_close(tokens[:, first:last].flip(1), turned[:, first:last])
    torch.testing.assert_close(tokens[:, :first], turned[:, :first])
    count = first + keep.shape[1] + (hidden.shape[1] if hiding.shows_hidden else 0)
    assert tokens.shape == (2, count, encoder.num_features)


def assert_untouched(encoder):
    for name, module in encoder.named_modules():
        assert not module._forward_hooks and not module._forward_pre_hooks, name
        assert not module._backward_hooks and not module._backward_pre_hooks, name
        assert "forward" not in vars(module), name


@pytest.mark.parametrize("case", FAMILIES)
def test_the_encoder_is_the_dense_model_to_the_bit_afterwards(case):
    encoder, hiding, rows = create(case)
    encoder.eval()
    images = torch.randn(2, 3, 64, 64)
    before = encoder(images)
    hiding(encoder, images, *choose(2, rows))
    assert_untouched(encoder)
    assert torch.equal(before, encoder(images))
    encoder.train()
    hiding(encoder, images, *choose(2, rows)).sum().backward()
    assert_untouched(encoder)
    encoder.eval()
    name, args = FAMILIES[case]
    fresh = timm.create_model(name, num_classes=0, **args).eval()
    fresh.load_state_dict(encoder.state_dict(), strict=True)
    assert torch.equal(fresh(images), encoder(images))


@pytest.mark.parametrize("case", FAMILIES)
def test_hooks_are_off_after_an_exception_as_well(case):
    encoder, hiding, rows = create(case)
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    convolution = convolutions[len(convolutions) // 2]
    weight, convolution.weight = convolution.weight, torch.nn.Parameter(torch.zeros(1, 1, 1))
    with pytest.raises(RuntimeError):
        hiding(encoder, torch.randn(2, 3, 64, 64), *choose(2, rows))
    assert_untouched(encoder)
    convolution.weight = weight
    assert hiding(encoder, torch.randn(2, 3, 64, 64), *choose(2, rows)).isfinite().all()


def pretrain(case, **options):
    name, args = FAMILIES[case]
    size = {} if "img_size" in args else {"image_size": 64}
    decoder = {} if "swin" in case else {"decoder_dim": 32, "decoder_depth": 1}
    torch.manual_seed(0)
    return MAE(name, 0.5, backbone_args=args, **size, **{**decoder, **options})


@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_state_dict_has_timms_keys_before_during_and_after_training(case):
    mae = pretrain(case)
    name, args = FAMILIES[case]
    keys = timm.create_model(name, num_classes=0, **args).state_dict().keys()
    assert mae.encoder.state_dict().keys() == keys
    seen = []

    def look(*_):
        seen.append(mae.encoder.state_dict().keys())

    handle = list(mae.encoder.children())[-3].register_forward_hook(look)
    optimizer = torch.optim.SGD(mae.parameters(), lr=0.01)
    for _ in range(2):
        loss = mae(torch.randn(2, 3, 64, 64))
        optimizer.zero_grad()
        loss.backward()
        seen.append(mae.encoder.state_dict().keys())
        optimizer.step()
    handle.remove()
    assert len(seen) >= 2 and all(each == keys for each in seen)
    assert mae.encoder.state_dict().keys() == keys
    assert_untouched(mae.encoder)


@pytest.mark.parametrize("case", ["vit", "vit, class token and registers", "swin"])
def test_gradient_checkpointing_changes_no_gradient(case):
    mae = pretrain(case)
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, mae.num_cells)
    plain = losses_and_gradients(mae, mae, images, noise)
    mae.encoder.set_grad_checkpointing(True)
    checkpointed = losses_and_gradients(mae, mae, images, noise)
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, atol=1e-6, rtol=1e-5)
    assert_untouched(mae.encoder)


@pytest.mark.parametrize("case", ["resnet", "convnextv2", "efficientnet", "mobilenetv3", "regnety"])
def test_gradient_checkpointing_of_a_cnn_is_refused_in_one_line(case):
    encoder, hiding, rows = create(case)
    encoder.set_grad_checkpointing(True)
    with pytest.raises(ValueError, match=r"set_grad_checkpointing\(False\)") as raised:
        hiding(encoder, torch.randn(2, 3, 64, 64), *choose(2, rows))
    assert "\n" not in str(raised.value)
    encoder.set_grad_checkpointing(False)
    assert hiding(encoder, torch.randn(2, 3, 64, 64), *choose(2, rows)).isfinite().all()


def losses_and_gradients(mae, call, images, noise):
    mae.zero_grad()
    loss = call(images, noise)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in mae.named_parameters() if p.requires_grad}
    return {"loss": loss.detach(), **gradients}


# Dynamo looks at it itself, behind the graph break that the hooks make.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
@pytest.mark.parametrize("case", ["vit", "swin", "resnet", "unet"])
def test_a_compiled_model_has_the_same_loss_and_gradients(case):
    torch._dynamo.reset()
    unet = {"decoder": "unet", "decoder_depth": None}
    mae = pretrain("resnet", **unet) if case == "unet" else pretrain(case)
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, mae.num_cells)
    twin = copy.deepcopy(mae)
    eager = losses_and_gradients(twin, twin, images, noise)
    compiled = losses_and_gradients(mae, torch.compile(mae, backend="aot_eager"), images, noise)
    assert eager.keys() == compiled.keys()
    largest = max(value.norm() for value in eager.values())
    for name, value in eager.items():
        error = (compiled[name] - value).norm() / max(value.norm(), 1e-4 * largest)
        assert error < 1e-4, f"{name}: {error:.1e}"
    buffers = dict(twin.named_buffers())
    for name, value in mae.named_buffers():
        torch.testing.assert_close(value, buffers[name], atol=1e-5, rtol=1e-4)
    assert_untouched(mae.encoder)
