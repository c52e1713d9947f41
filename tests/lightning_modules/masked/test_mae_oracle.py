"""The masked autoencoder of a ViT against the MAE paper (arXiv:2111.06377), written out by hand.

The oracle goes image by image and patch by patch, with every block's arithmetic as matrix products,
and unshuffles the tokens into image order as the paper does. It takes only the weights from ours.
"""

import math

import numpy as np
import pytest
import torch

from litcam.lightning_modules import MAE
from litcam.lightning_modules.masked.decoders import sincos_positions

NAME, PATCH, SIDE = "vit_tiny_patch16_224", 8, 48
TINY = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 48, "depth": 2, "num_heads": 3}
DECODER = {"decoder_dim": 64, "decoder_depth": 2}


def create(**options):
    """Make a small MAE whose biases, norms and tokens are anything but zeros and ones."""
    torch.manual_seed(1)
    mae = MAE(NAME, **{"backbone_args": TINY, **DECODER, **options})
    with torch.no_grad():
        for name, weight in mae.named_parameters():
            if weight.requires_grad and "pos_embed" not in name:
                weight.add_(torch.randn_like(weight) * 0.05)
    return mae


def normalise(tokens, weight, bias):
    centred = tokens - tokens.sum(-1, keepdim=True) / tokens.shape[-1]
    variance = (centred * centred).sum(-1, keepdim=True) / tokens.shape[-1]
    return centred / (variance + 1e-6).sqrt() * weight + bias


def attend(tokens, weights, heads):
    """Attend in one image (tokens, dim), head by head."""
    dim = tokens.shape[1]
    size = dim // heads
    mixed = tokens @ weights["qkv.weight"].T + weights["qkv.bias"]
    results = []
    for head in range(heads):
        query, key, value = (
            mixed[:, part * dim + head * size : part * dim + (head + 1) * size] for part in range(3)
        )
        scores = query @ key.T / math.sqrt(size)
        powers = (scores - scores.max(dim=1, keepdim=True).values).exp()
        results.append(powers / powers.sum(dim=1, keepdim=True) @ value)
    return torch.cat(results, dim=1) @ weights["proj.weight"].T + weights["proj.bias"]


def below(weights, prefix):
    return {name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)}


def transform(tokens, weights, heads):
    """Apply one pre-norm transformer block to the tokens of one image."""
    inner = normalise(tokens, weights["norm1.weight"], weights["norm1.bias"])
    tokens = tokens + attend(inner, below(weights, "attn."), heads)
    inner = normalise(tokens, weights["norm2.weight"], weights["norm2.bias"])
    inner = inner @ weights["mlp.fc1.weight"].T + weights["mlp.fc1.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return tokens + inner @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"]


def cut(image):
    """Cut one image (3, height, width) into patches (patches, pixels × channels)."""
    patches = []
    for top in range(0, image.shape[1], PATCH):
        for left in range(0, image.shape[2], PATCH):
            square = image[:, top : top + PATCH, left : left + PATCH]
            patches.append(
                torch.stack([square[:, p, q] for p in range(PATCH) for q in range(PATCH)])
            )
    return torch.stack(patches).flatten(1)


def positions(side, dim):
    """Sines and cosines of column, then row, as NumPy: one number at a time."""
    table = np.zeros((side * side, dim))
    quarter = dim // 4
    for cell in range(side * side):
        row, column = divmod(cell, side)
        for i in range(quarter):
            rate = 1 / 10000 ** (i / quarter)
            table[cell, i] = math.sin(column * rate)
            table[cell, quarter + i] = math.cos(column * rate)
            table[cell, 2 * quarter + i] = math.sin(row * rate)
            table[cell, 3 * quarter + i] = math.cos(row * rate)
    return table


def encode(weights, image, kept):
    """Encode the visible patches of one image (visible [+ class token], dim)."""
    # timm's convolution weights are (dim, channels, p, q); ours are (p, q, channels).
    kernel = torch.einsum("ocpq->pqco", weights["patch_embed.proj.weight"]).flatten(0, 2)
    patches = cut(image) @ kernel + weights["patch_embed.proj.bias"]
    places = weights["pos_embed"][0]
    tokens = torch.stack([patches[cell] + places[cell - len(patches)] for cell in kept])
    if "cls_token" in weights:
        tokens = torch.cat([weights["cls_token"][0] + places[:1], tokens])
    for i in range(TINY["depth"]):
        tokens = transform(tokens, below(weights, f"blocks.{i}."), TINY["num_heads"])
    return normalise(tokens, weights["norm.weight"], weights["norm.bias"])


def decode(weights, tokens, kept, count):
    """Predict all patches of one image, in image order, from class token and visible ones."""
    tokens = tokens @ weights["embed.weight"].T + weights["embed.bias"]
    dim = tokens.shape[1]
    restored = [weights["mask_token"][0, 0]] * count
    for place, cell in enumerate(kept):
        restored[cell] = tokens[1 + place]
    table = torch.from_numpy(positions(math.isqrt(count), dim)).float()
    tokens = torch.cat([tokens[:1], torch.stack(restored) + table])
    for i in range(DECODER["decoder_depth"]):
        tokens = transform(tokens, below(weights, f"blocks.{i}."), dim // 32)
    tokens = normalise(tokens, weights["norm.weight"], weights["norm.bias"])
    return (tokens @ weights["head.weight"].T + weights["head.bias"])[1:]


def visible(numbers, mask_ratio):
    order = sorted(range(len(numbers)), key=numbers.tolist().__getitem__)
    return order[: int(len(numbers) * (1 - mask_ratio))]


def oracle(encoder, decoder, images, noise, *, mask_ratio, norm_pix_loss):
    """Compute the paper's loss from the weights of encoder and decoder, by their names."""
    losses = []
    for image, numbers in zip(images, noise, strict=True):
        patches, kept = cut(image), visible(numbers, mask_ratio)
        predicted = decode(decoder, encode(encoder, image, kept), kept, len(patches))
        for cell in set(range(len(patches))) - set(kept):
            target = patches[cell]
            if norm_pix_loss:
                target = (target - target.mean()) / (target.var(correction=1) + 1e-6) ** 0.5
            losses.append(((predicted[cell] - target) ** 2).mean())
    return torch.stack(losses).mean()


def copied(module):
    weights = {name: w.detach().clone() for name, w in module.state_dict().items()}
    trained = {name for name, w in module.named_parameters() if w.requires_grad}
    return {name: w.requires_grad_(name in trained) for name, w in weights.items()}


def photo_like(batch, dtype=torch.float32):
    """Make smooth images with some noise, of very different contrast from patch to patch."""
    coarse = torch.randn(batch, 3, 6, 6, dtype=dtype)
    smooth = torch.nn.functional.interpolate(coarse, SIDE, mode="bilinear")
    return smooth + 0.1 * torch.randn(batch, 3, SIDE, SIDE, dtype=dtype)


def distance(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("learned_positions", [False, True])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.4])
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["32", "64"]
)
def test_loss_and_every_gradient_are_the_papers(
    mask_ratio, norm_pix_loss, learned_positions, dtype, rounding
):
    mae = create(
        mask_ratio=mask_ratio, norm_pix_loss=norm_pix_loss, learned_positions=learned_positions
    ).to(dtype)
    images, noise = photo_like(3, dtype), torch.rand(3, 36)
    loss = mae(images, noise)
    loss.backward()

    encoder, decoder = copied(mae.encoder), copied(mae.decoder)
    expected = oracle(
        encoder, decoder, images, noise, mask_ratio=mask_ratio, norm_pix_loss=norm_pix_loss
    )
    expected.backward()
    assert abs(loss.item() - expected.item()) <= rounding / 10
    for module, weights in ((mae.encoder, encoder), (mae.decoder, decoder)):
        names = {name for name, weight in module.named_parameters() if weight.requires_grad}
        assert names == {name for name, weight in weights.items() if weight.requires_grad}
        for name in names:
            found = distance(module.get_parameter(name).grad, weights[name].grad)
            assert found <= rounding, f"{name}: {found:.1e}"
    assert ("pos_embed" in encoder and encoder["pos_embed"].requires_grad) == learned_positions


def test_tokens_and_predictions_agree_to_rounding_in_float64():
    mae = create().double()
    images, noise = photo_like(2, torch.float64), torch.rand(2, 36)
    keep, hidden = mae._choose(images, noise)
    tokens = mae.hiding(mae.encoder, images, keep, hidden)
    predicted = mae.decoder(tokens, keep, hidden)
    encoder, decoder = copied(mae.encoder), copied(mae.decoder)
    for number in range(2):
        kept = visible(noise[number], 0.75)
        encoded = encode(encoder, images[number], kept)
        torch.testing.assert_close(tokens[number], encoded, atol=1e-12, rtol=0)
        decoded = decode(decoder, encoded, kept, 36)[hidden[number]]
        torch.testing.assert_close(predicted[number], decoded, atol=1e-12, rtol=0)


def test_the_smallest_noise_decides_which_cells_stay_visible():
    mae = create(mask_ratio=0.5)
    images = photo_like(2)
    noise = torch.stack([torch.randperm(36), torch.randperm(36)]).float()
    hidden = mae.reconstruct(images, noise).hidden
    for number in range(2):
        for cell in range(36):
            top, left = cell // 6 * PATCH, cell % 6 * PATCH
            square = hidden[number, top : top + PATCH, left : left + PATCH]
            assert (square == (noise[number, cell] >= 18)).all()
    assert torch.equal(mae(images, noise), mae(images, noise / 36))
    assert not torch.equal(mae(images, noise), mae(images, -noise))


def test_only_the_order_of_noise_matters_not_that_of_tokens():
    """Any noise that keeps the same cells gives the same loss: the tokens are a set."""
    mae = create(mask_ratio=0.5).double()
    images = photo_like(1, torch.float64)
    noise = torch.arange(36.0)[None]
    shuffled = torch.cat([torch.randperm(18).float(), 18 + torch.randperm(18).float()])[None]
    torch.testing.assert_close(mae(images, noise), mae(images, shuffled), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("grid", "dim"), [((1, 1), 4), ((6, 6), 48), ((14, 14), 192)])
def test_fixed_positions_are_the_sines_and_cosines_of_column_and_row(grid, dim):
    ours = sincos_positions(grid, dim)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), positions(grid[0], dim), atol=6e-8, rtol=0)


def test_a_grid_that_is_not_square_counts_its_cells_row_by_row():
    wide = sincos_positions((2, 5), 16).reshape(2, 5, 16)
    square = sincos_positions((5, 5), 16).reshape(5, 5, 16)
    assert torch.equal(wide, square[:2])


@pytest.mark.parametrize("learned", [False, True])
def test_position_embedding_is_fixed_unless_it_is_learned(learned):
    torch.manual_seed(0)
    mae = MAE(NAME, backbone_args=TINY, **DECODER, learned_positions=learned)
    embedding = mae.encoder.pos_embed
    table = torch.from_numpy(positions(6, 48)).float()
    assert embedding.requires_grad == learned
    assert torch.allclose(embedding[0, 1:], table, atol=6e-8) == (not learned)
    assert bool(embedding[0, 0].any()) == learned
    assert ("encoder.pos_embed" in {n for n, p in mae.named_parameters() if p.requires_grad}) == (
        learned
    )


def test_the_class_token_gets_no_position_in_the_decoder():
    mae = create()
    table = mae.decoder.positions
    np.testing.assert_allclose(table.numpy(), positions(6, 64), atol=6e-8, rtol=0)
    assert len(table) == 36
    assert "positions" not in mae.decoder.state_dict()


def test_a_vit_without_class_token_is_encoded_as_well():
    without = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    mae = create(backbone_args={**TINY, **without}).double()
    images, noise = photo_like(2, torch.float64), torch.rand(2, 36)
    tokens = mae.hiding(mae.encoder, images, *mae._choose(images, noise))
    for number in range(2):
        expected = encode(copied(mae.encoder), images[number], visible(noise[number], 0.75))
        torch.testing.assert_close(tokens[number], expected, atol=1e-12, rtol=0)
