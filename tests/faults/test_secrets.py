"""Keys that are planted everywhere are looked for in all that a run writes and sends."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from wandb_files import inspect
from wandb_server import Server

pytestmark = pytest.mark.timeout(180)

# What is planted, and where. None of them is a real key.
IN_ADDRESS = "pw-in-address-7391"
IN_QUERY = "token-in-query-5512"
IN_CONFIG = "password-in-config-8820"
IN_NOTES = f"ghp_{'N' * 36}"
IN_REMOTE = f"ghp_{'R' * 36}"
IN_NETRC = "netrc0password" * 3
AS_VALUE = f"hf_{'V' * 34}"
ENVIRONMENT = {
    "WANDB_API_KEY": "0f" * 20,
    "AWS_SECRET_ACCESS_KEY": "aws/secret+of+forty+characters+aaaaaaaaa",
    "HF_TOKEN": f"hf_{'E' * 34}",
    "GITHUB_TOKEN": "environment-token-4477",
    "SLURM_JOB_ID": "12",
    "SLURM_JWT": "eyJhbGciOi.eyJleHBpcm.c2lnbmF0dXJl",
}


def plant(folder, server):
    """A project with photos, a git repository, a netrc and a config; the words of the command."""
    for split in ("train", "val"):
        for number in range(8):
            place = folder / "photos" / split / ("ant", "bee")[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    remote = f"https://{IN_REMOTE}:x-oauth-basic@github.com/me/project.git"
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@example.com"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    subprocess.run([*git, "remote", "add", "origin", remote], cwd=folder, check=True)
    netrc = f"machine 127.0.0.1 login me password {IN_NETRC}\n"
    (folder / ".netrc").write_text(netrc)
    logger = {
        "class_path": "litcam.callbacks.WandbLogger",
        "init_args": {"finish_timeout": 20},
        "dict_kwargs": {"config": {"db_password": IN_CONFIG}, "notes": f"see {IN_NOTES}"},
    }
    table = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs"}}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"trainer": {"logger": [table, logger]}}))
    options = {
        "config": "mine.yaml",
        "model": "Classifier",
        "model.backbone": "resnet10t",
        "model.backbone_args.channels": "[8,8,16,16]",
        "data": "ImageNetDataModule",
        "data.root": "photos",
        "data.image_size": "32",
        "data.batch_size": "4",
        "data.num_workers": "0",
        "data.cache_dir": f"https://bob:{IN_ADDRESS}@host/x?token={IN_QUERY}&key={AS_VALUE}",
        "trainer.max_epochs": "1",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def test_planted_keys(tmp_path, tell):
    server = Server()
    words = plant(tmp_path, server)
    given = {*tmp_path.rglob("*")}
    environment = {**os.environ, **ENVIRONMENT, "WANDB_BASE_URL": server.url}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / ".netrc")}
    environment |= {"WANDB_DATA_DIR": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path)}
    script = "import sys; from litcam.train import main; main(sys.argv[1:])"
    ran = subprocess.run(
        [sys.executable, "-c", script, "fit", *words],
        cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=150,
    )  # fmt: skip
    server.close()
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    assert server.history, "the run was not online"
    secrets = [IN_ADDRESS, IN_QUERY, IN_CONFIG, IN_NOTES, IN_REMOTE, IN_NETRC, AS_VALUE]
    secrets += [value for name, value in ENVIRONMENT.items() if name != "SLURM_JOB_ID"]
    files = [path for path in tmp_path.rglob("*") if path not in given and path.is_file()]
    texts = {path.relative_to(tmp_path): path.read_bytes() for path in files}
    (log,) = [path for path in files if path.suffix == ".wandb"]
    records = [json.dumps(record).encode() for record in inspect(log)]
    assert len(records) > 20 and any(b"github.com/me/project" in record for record in records)
    texts |= {f"record {number}": record for number, record in enumerate(records)}
    texts |= {f"sent {number}": body for number, body in enumerate(server.bodies)}
    texts |= {f"sent as {name}": body for name, body in server.images.items()}
    texts |= {"stdout": ran.stdout, "stderr": ran.stderr}
    found = {
        (secret, str(where))
        for secret in secrets
        for where, text in texts.items()
        if secret.encode() in text or secret in str(where)
    }
    print(*sorted(found), sep="\n")
    assert not found, found
    tell(
        f"{len(secrets)} keys and passwords given to `litcam fit` with W&B online",
        caused="in an address and as values on the command line, in the config, in the address of "
        "the git remote, in netrc and in the environment (W&B, AWS, Hugging Face, GitHub, SLURM)",
        times=1,
        happened=f"found in none of {len(files)} files of the run and of W&B, {len(records)} "
        f"records of its log, {len(server.bodies)} requests to its server, nor on the console",
    )
