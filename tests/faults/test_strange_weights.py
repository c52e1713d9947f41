"""Files of weights that are damaged, hostile or no weights: one line, and nothing of them runs."""

import json
import os
import pickle
import random
import resource
import struct
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from outcomes import READ, made, outcome, within  # noqa: F401
from PIL import Image

from litcam.commands.explaining.models import load_model
from litcam.lightning_modules import Classifier
from litcam.lightning_modules.weights.saving import save_encoder
from litcam.train import main

FOUND = Path(__file__).parent / "found"
BACKBONE = "test_resnet"
# Each takes 0.1 s: 10,000 would be a quarter of an hour.
MOST = 1_000
MEGABYTE = 2**20


class Call:
    """A pickle that calls something when it is read."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.fixture
def files():
    """A checkpoint as `litcam fit` writes it, and an encoder as pretraining does."""
    module = Classifier(BACKBONE, 8)
    checkpoint = {
        "state_dict": module.state_dict(),
        "hyper_parameters": {
            **module.hparams,
            "_class_path": "litcam.lightning_modules.Classifier",
        },
        "class_names": list("abcdefgh"),
        "image_size": 64,
    }
    torch.save(checkpoint, "last.ckpt")
    facts = {"backbone": BACKBONE, "backbone_args": None, "image_size": 64}
    save_encoder(timm.create_model(BACKBONE, num_classes=0), "encoder.safetensors", facts)
    Path("pwned.py").write_text("open('pwned', 'w')\n\nclass Model: pass\n")
    return checkpoint


def end_of(load, file):
    """`READ`, or what was said: by litcam, in one line, with the file's name in it."""
    said = READ
    try:
        with within(20):
            load(file)
    except (ValueError, OSError) as error:
        said = str(error)
    assert said == READ or Path(file).name in said, said
    return said


def explained(file):
    return load_model(file, pretrained=False)


def fine_tuned(file):
    return Classifier(BACKBONE, 8, weights=file)


def resumed(made):  # noqa: F811
    words = ["validate", "--config", "demo.yaml", "--trainer.logger=false", "--model.backbone"]
    words += [BACKBONE, "--model.backbone_args", "null", "--ckpt_path"]
    return lambda file: made([*words, file])


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def damage(content, rng):
    """Bytes flipped, lost, doubled, moved or set to zero, mostly where the structure is."""
    content = bytearray(content)
    ends = [
        rng.randrange(4096),
        len(content) - 1 - rng.randrange(4096),
        rng.randrange(len(content)),
    ]
    at, length = rng.choice(ends), rng.choice([1, 1, 4, 100, 5000])
    kind = rng.randrange(6)
    if kind == 0:
        del content[at:]
    elif kind == 1:
        del content[at : at + length]
    elif kind == 2:
        content[at:at] = content[at : at + length]
    elif kind == 3:
        content[at : at + length] = bytes(len(content[at : at + length]))
    else:
        for _ in range(rng.choice([1, 3, 20])):
            content[min(at + rng.randrange(length + 20), len(content) - 1)] ^= 1 << rng.randrange(8)
    return bytes(content)


@pytest.mark.parametrize("case", sorted(FOUND.glob("weights*")), ids=lambda path: path.name)
def test_what_was_found_in_weights(case):
    for load in (explained, fine_tuned):
        assert end_of(load, str(case)) != READ


def test_fuzzed_weights(files, made, fuzz, tell):  # noqa: F811
    whole = {name: Path(name).read_bytes() for name in ("last.ckpt", "encoder.safetensors")}
    counts, times = Counter(), min(fuzz, MOST)
    for name in whole:  # so that what is damaged below was whole before
        assert end_of(explained, name) == end_of(fine_tuned, name) == READ
    before, resume = peak(), resumed(made)
    for number in range(times):
        rng = random.Random(number)
        name = rng.choice(list(whole))
        Path(name).write_bytes(damage(whole[name], rng))
        try:
            if name == "last.ckpt" and rng.random() < 0.2:
                end, kind = outcome(resume(name), seconds=20), "ckpt_path"
            else:
                load = rng.choice([explained, fine_tuned])
                end, kind = end_of(load, name), load.__name__
        except BaseException as error:
            raise AssertionError(f"input {number}: {name}") from error
        counts[kind] += 1
        counts["read" if end == READ else "refused"] += 1
    assert peak() - before < 200
    tell(
        "A damaged checkpoint or encoder",
        caused="bytes flipped, lost, doubled or zeroed, mostly in header, pickle and index; given "
        f"to `litcam explain` ({counts['explained']:,}), to `--model.weights` "
        f"({counts['fine_tuned']:,}) and `--ckpt_path` ({counts['ckpt_path']:,})",
        times=times,
        happened=f"{counts['refused']:,} refused in one line, {counts['read']:,} still hold the "
        "whole structure and were read; no traceback, no more memory than the file",
        lost="a bit flipped inside a tensor is not noticed: nothing holds a hash of it",
    )


def codes():
    """What a pickle would call, and how it is stored."""
    calls = {
        "os.system": Call(os.system, "touch pwned"),
        "eval": Call(eval, "open('pwned', 'w')"),
        "import": Call(__import__, "pwned"),
        "path": Call(Path.touch, Path("pwned")),
        "getattr": Call(getattr, Path("pwned"), "touch"),
        "torch.load": Call(torch.load, "last.ckpt", None, None),
        "hub": Call(torch.hub.load, ".", "pwned"),
    }
    for name, call in calls.items():
        yield name, call
        yield f"{name} in a list", [call]
        yield f"{name} as weights", {"state_dict": call, "hyper_parameters": {"backbone": BACKBONE}}
        yield f"{name} as an option", {"state_dict": {}, "hyper_parameters": {"backbone": call}}


def test_pickles_that_call_something(files, made, tell):  # noqa: F811
    tried = 0
    for name, stored in codes():
        torch.save(stored, "zip.ckpt")
        torch.save(stored, "legacy.pth", _use_new_zipfile_serialization=False)
        Path("plain.pt").write_bytes(pickle.dumps(stored, protocol=2))
        # A pickle by another name: the suffix alone decides who reads it.
        Path("pickle.safetensors").write_bytes(pickle.dumps(stored, protocol=2))
        for file in ("zip.ckpt", "legacy.pth", "plain.pt", "pickle.safetensors"):
            for load in (explained, fine_tuned):
                assert end_of(load, file) != READ, (name, file)
                tried += 1
        assert outcome(resumed(made)("zip.ckpt")) != READ
        tried += 1
    assert not Path("pwned").exists()
    tell(
        "Weights that hold a program: os.system, eval, imports, torch.hub",
        caused="pickles in the three formats of torch and by the name .safetensors; as a whole, in "
        "a list, as weights, as an option; to `explain`, `--model.weights`, `--ckpt_path`",
        times=tried,
        happened="refused in one line; nothing was executed",
    )


def test_options_in_a_checkpoint_that_name_classes(files, made, tell):  # noqa: F811
    options = files["hyper_parameters"]
    call = {"class_path": "os.system", "init_args": {"command": "touch pwned"}}
    cases = [{"_class_path": name} for name in ("pwned.Model", "os.system", 3, ["pwned.Model"])]
    cases += [{"_instantiator": "pwned.Model"}]
    cases += [{name: {"class_path": "pwned.Model"}} for name in (*options, "more")]
    cases += [{name: call} for name in ("backbone_args", "freeze", "weights")]
    cases += [{"backbone_args": {"checkpoint_path": "evil.pth"}}, {"backbone": "local-dir:."}]
    Path("evil.pth").write_bytes(pickle.dumps(Call(Path.touch, Path("pwned"))))
    counts = Counter()
    for case in cases:
        torch.save({**files, "hyper_parameters": {**options, **case}}, "evil.ckpt")
        counts[outcome(resumed(made)("evil.ckpt")) == READ] += 1
        counts[end_of(explained, "evil.ckpt") == READ] += 1
    assert not Path("pwned").exists()
    tell(
        "A checkpoint whose options name classes, files and modules",
        caused="in place of each option of the model, of its class and of LightningCLI's notes; "
        "to `--ckpt_path` and `explain`",
        times=sum(counts.values()),
        happened=f"{counts[False]} refused in one line, {counts[True]} without effect; no module "
        "was imported, nothing executed (`_class_path` imported any module)",
    )


def tensor(start, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "a header of 2^63 bytes": (b"{}", 2**63, b""),
    "a header of a terabyte": (b"{}", 2**40, b""),
    "a header that is not there": (b"", None, b""),
    "no JSON": (b"{" * 1000, None, b""),
    "overlapping tensors": ({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, None, bytes(12)),
    "a tensor of a terabyte": ({"a": tensor(0, 2**40, [2**38])}, None, bytes(12)),
    "a shape that overflows": ({"a": tensor(0, 4, [2**62, 2**62])}, None, bytes(4)),
    "an end before its start": ({"a": tensor(4, 0, [1])}, None, bytes(4)),
    "no such dtype": ({"a": tensor(0, 4, [1], "X9")}, None, bytes(4)),
    "a gap": ({"a": tensor(4, 8, [1])}, None, bytes(8)),
    "not its network's": ({"a": tensor(0, 4, [1])}, None, bytes(4)),
}
FACTS = [
    {"backbone": BACKBONE, "backbone_args": [1]},
    {"backbone": BACKBONE, "backbone_args": {"checkpoint_path": "evil.pth"}},
    {"backbone": "resnet43"},
    {"backbone": 3},
]
TOLD = ["[" * 100_000, "[1]", "3", "null", "{", *map(json.dumps, FACTS)]


def write_safetensors(header, length=None, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = struct.pack("<Q", len(text) if length is None else length)
    Path("mine.safetensors").write_bytes(start + text + data)


def test_headers_that_lie(files, tell):
    Path("evil.pth").write_bytes(pickle.dumps(Call(Path.touch, Path("pwned"))))
    before, tried = peak(), 0
    for header in HEADERS.values():
        write_safetensors(*header)
        for load in (explained, fine_tuned):
            assert end_of(load, "mine.safetensors") != READ
            tried += 1
    for text in TOLD:
        write_safetensors({"__metadata__": {"litcam": text}, **HEADERS["a gap"][0]}, None, bytes(8))
        write_safetensors(
            {"__metadata__": {"litcam": text}, "a": tensor(0, 4, [1])}, None, bytes(4)
        )
        assert end_of(explained, "mine.safetensors") != READ
        tried += 1
    assert peak() - before < 100
    assert not Path("pwned").exists()
    tell(
        "A safetensors file whose header lies: its length, offsets, shapes, what it was made with",
        caused="to `explain` and `--model.weights`",
        times=tried,
        happened="refused in one line, without memory for what it claims",
    )


def test_a_file_that_unpacks_into_a_gigabyte(files, made, tell):  # noqa: F811
    with zipfile.ZipFile("last.ckpt") as parts, zipfile.ZipFile("bomb.ckpt", "w") as bomb:
        for part in parts.infolist():
            copy = zipfile.ZipInfo(part.filename)
            if not part.filename.endswith("data/0"):
                bomb.writestr(copy, parts.read(part))
                continue
            copy.compress_type = zipfile.ZIP_DEFLATED
            with bomb.open(copy, "w") as record:
                for _ in range(1000):
                    record.write(bytes(MEGABYTE))
    packed = Path("bomb.ckpt").stat().st_size
    Image.new("RGB", (32, 32)).save("photo.png")
    fit = ["fit", "--config", "demo.yaml"]
    runs = {
        "explain": lambda: main(["explain", "photo.png", "--models", "bomb.ckpt"]),
        "encoder": made([*fit, "--model.weights", "bomb.ckpt"]),
        "ckpt_path": made([*fit, "--ckpt_path", "bomb.ckpt"]),
    }
    before = peak()
    for run in runs.values():
        assert outcome(run, seconds=10) != READ
    assert peak() - before < 100
    tell(
        f"A checkpoint of {packed / 1e6:.0f} MB that unpacks into 1 GB",
        caused="a compressed record in torch's zip; to `explain`, `--model.weights`, `--ckpt_path`",
        times=len(runs),
        happened="refused in one line before it is unpacked",
    )
