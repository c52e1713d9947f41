"""Two processes train one masked autoencoder: every parameter is used, every mask is its own."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, sys
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from litcam.lightning_modules import MAE

torch.set_num_threads(1)
families, folder = json.loads(sys.argv[1])


class Watched(MAE):
    def forward(self, images, noise=None):
        self.seen = [*getattr(self, "seen", []), *noise.tolist()]
        return super().forward(images, noise)


class Data(pl.LightningDataModule):
    def __init__(self, size, pairs):
        super().__init__()
        images = torch.randn(10, 3, size, size)
        self.items = [(x, 0) if pairs else {"image": x, "index": i} for i, x in enumerate(images)]

    def train_dataloader(self):
        return DataLoader(self.items, batch_size=4 // self.trainer.world_size)


for family, (name, size, args, pairs) in families.items():
    torch.manual_seed(0)
    sized = "swin" not in name and "unet" not in family
    sizes = {"decoder_dim": 64, "decoder_depth": 1} if sized else {}
    mae = Watched(name, 0.5, image_size=size, backbone_args=args, warmup_epochs=0, **sizes)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), strategy="ddp",
        limit_train_batches=2, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, logger=False,
    )
    trainer.fit(mae, Data(size, pairs))
    weights = torch.nn.utils.parameters_to_vector(mae.parameters()).double().sum().item()
    with open(f"{folder}/{family}-{trainer.world_size}-{trainer.global_rank}.json", "w") as file:
        json.dump({"noise": mae.seen, "weights": weights}, file)
"""
SWIN = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
VIT = {"patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 2}
SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
# name, image size, arguments, whether batches are tuples without an index
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", 16, VIT, False),
    "tuples": ("vit_tiny_patch16_224", 16, VIT, True),
    "average": ("vit_tiny_patch16_224", 16, {**VIT, "global_pool": "avg"}, False),
    "swin": ("swin_tiny_patch4_window7_224", 64, SWIN, False),
    "cnn": ("resnet10t", 64, {"channels": (8, 8, 16, 24)}, False),
    "convnext": ("convnext_atto", 64, SMALL, False),
    "unet": ("resnet10t", 64, {"channels": (8, 8, 16, 24)}, False),
    "convnext, unet": ("convnext_atto", 64, SMALL, False),
    "mobilenet": ("mobilenetv3_small_050", 64, {}, False),
}


def run(ranks, families, folder):
    """Every family's facts of every rank, from one start of the processes."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks), str(script), json.dumps([families, str(folder)])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        family: [
            json.loads((folder / f"{family}-{ranks}-{rank}.json").read_text())
            for rank in range(ranks)
        ]
        for family in families
    }


@pytest.mark.slow
def test_two_ranks_train_every_parameter_with_masks_of_their_own(tmp_path):
    two = run(2, FAMILIES, tmp_path)
    for family, (left, right) in two.items():
        assert left["weights"] == right["weights"], family
        masks = [tuple(noise) for facts in (left, right) for noise in facts["noise"]]
        assert len(masks) == len(set(masks)) == 8, family
    # An image has the same mask on any number of processes.
    one = run(1, {"vit": FAMILIES["vit"]}, tmp_path)["vit"][0]["noise"]
    known = {tuple(noise) for facts in two["vit"] for noise in facts["noise"]}
    assert {tuple(noise) for noise in one} == known
