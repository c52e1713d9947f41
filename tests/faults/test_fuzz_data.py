"""Files of a data set that say anything: read as they are, or refused in one line."""

import copy
import json
import math
import shutil
from random import Random

import numpy as np
import pytest
import torch
from apart import outcomes
from damage import damaged
from data_sets import pack, read_all, refusal, replace_column, rewrite, samples, write_photos
from safetensors.torch import save_file

from litcam.commands.explaining.stored import read_network
from litcam.datamodules.convert import check, convert
from litcam.datamodules.convert.inputs import open_source
from litcam.datamodules.shard_format import COLUMNS, column_file

SECONDS = 20  # at most, for a data set of a dozen images
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 99, 2**31, 2**62, 2**63, -(2**63), 10**30, 0.5, 1e308),
    *(math.nan, math.inf, "", "x", "../x", "0" * 16, "train", "cat", "\0", "\ud800", "x" * 10_000),
    *([], {}, [[]], [None], [1, 2], ["x", "x"], {"file": "x"}, [[[[[[[[[[]]]]]]]]]]),
]


def tell_of(tell, said, fault, caused):
    others = [line for line in said if line not in ("read", "refused")]
    assert not others
    read, refused = said.count("read"), said.count("refused")
    assert read + refused == len(said) and refused
    happened = f"{refused:,} refused in a line" + (f", {read:,} read" if read else "")
    tell(fault, caused=caused, times=len(said), happened=happened)


@pytest.fixture
def made(tmp_path):
    """A converted data set."""
    good = tmp_path / "good"
    convert(write_photos(tmp_path / "photos"), good, chunk_bytes=4000)
    return good


def content(root):
    data = read_all(root)
    sets = [loader.dataset for loader in (data.train_dataloader(), data.val_dataloader())]
    return [(at.read(i), int(at.labels[i])) for at in sets for i in range(len(at))]


def of_spoilt(root, spoil, *, may_differ=False):
    """Opens a data set that was spoilt, with and without `--check`, and mends it again."""
    expected = content(root)
    files = [root / "litcam.json", *(root / "train").glob("*.npy")]
    sound = {file: file.read_bytes() for file in files}
    found = []

    def work(case):
        spoil(case)
        refusal(check, root)
        line = refusal(lambda: found.append(content(root)))
        for file, data in sound.items():
            if file.read_bytes() != data:
                file.write_bytes(data)
        if line:
            return "refused"
        same = found.pop() == expected
        return "read" if same or may_differ else f"other images: {case!r:.500}"

    return work


def mutate(words, chance):
    """JSON with one to three values replaced, taken out, doubled or renamed, anywhere in it."""
    words = copy.deepcopy(words)
    for _ in range(chance.randint(1, 3)):
        at, places = words, []
        while isinstance(at, dict | list) and at:
            key = chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at))
            places.append((at, key))
            at = at[key]
        if not places:
            return words
        at, key = chance.choice(places)
        change = chance.randrange(8)
        if change == 0:
            del at[key]
        elif change == 1 and isinstance(at, list):
            at.insert(chance.randint(0, len(at)), copy.deepcopy(at[key]))
        elif change == 1:
            at[chance.choice(["x", "", "../x", "train", "labels.npy"])] = at.pop(key)
        else:
            at[key] = copy.deepcopy(chance.choice(VALUES))
    return words


def test_what_a_manifest_may_say(made, fuzz, tell):
    chance, generator = Random(0), np.random.default_rng(0)
    text = (made / "litcam.json").read_bytes()
    words = json.loads(text)

    def spoil(case):
        if isinstance(case, bytes):
            (made / "litcam.json").write_bytes(case)
        else:
            rewrite(made, lambda all_, at: (all_.clear(), all_.update(case)))

    cases = [mutate(words, chance) for _ in range(fuzz)]
    cases += [damaged(text, generator) for _ in range(fuzz)]
    cases += [b"", b"null", b"[]", b"{}", b'{"format": 2}', b"[" * 100_000, text[:-1], text * 2]
    cases += [text.decode().encode("utf-16"), b"\xff" + text, text.replace(b'"cat"', b'"\\ud800"')]
    said = outcomes(of_spoilt(made, spoil), cases, seconds=SECONDS)
    tell_of(
        *(tell, said, "a manifest (`litcam.json`) says anything"),
        "its values replaced by others of every type, under a right hash; its bytes flipped, cut, "
        "put in, taken out; opened and `--check`ed",
    )


def test_what_a_column_may_hold(made, fuzz, tell):
    generator, names = np.random.default_rng(0), list(map(column_file, COLUMNS))
    cases = []
    for number in range(fuzz // 4):
        name = names[number % len(names)]
        data = (made / "train" / name).read_bytes()
        header = bool(generator.integers(2)) and damaged(data[:128], generator) + data[128:]
        cases.append((name, header or damaged(data, generator)))

    # Under a right hash another place or length of an image is as good as the first one.
    work = of_spoilt(made, lambda case: replace_column(made, *case), may_differ=True)
    said = outcomes(work, cases, seconds=SECONDS)
    tell_of(
        *(tell, said, "a list of images in a converted data set is damaged"),
        "`.npy` files with bytes flipped, cut, put in, taken out, under a right hash",
    )


def test_what_a_list_of_classes_may_hold(tmp_path, fuzz, tell):
    root, generator = tmp_path / "tars", np.random.default_rng(0)
    for split in ("train", "val"):
        pack(root / f"{split}.tar", samples())
    sound = "cat\nhot dog\n  ant \n\nYorkshire terrier, Ñandú\n".encode()
    cases = [sound, b"", b"\n", b"cat", b"cat\ncat\n", b"\0\n\1", b"\xff\xfe\n\n", b"a\n" * 10**6]
    cases += [damaged(sound, generator) for _ in range(fuzz)]

    def work(case):
        (root / "classes.txt").write_bytes(case)
        if refusal(open_source, root, tmp_path / "scratch"):
            return "refused"
        lines = [line.strip() for line in case.decode().split("\n") if line.strip()]
        classes = open_source(root, tmp_path / "scratch")["train"].classes
        return "read" if classes == lines else f"other classes: {case!r:.500}"

    cases[-1] = sound
    said = outcomes(work, cases, seconds=SECONDS)
    assert said[0] == "read"
    tell_of(
        *(tell, said, "a list of classes (`classes.txt`) says anything"),
        "no names, one, one twice, a million, other bytes than UTF-8; bytes flipped, cut, put in",
    )


def test_what_kaggles_csv_may_hold(tmp_path, fuzz, tell):
    root, generator = write_photos(tmp_path / "photos"), np.random.default_rng(0)
    rows = ["ImageId,PredictionString"]
    for place in sorted((root / "val").glob("*/*.jpg")):
        name = f"{place.parent.name}{place.stem}"
        place.rename(root / "val" / f"{name}.jpg")
        rows.append(f"{name},{place.parent.name} 1 2 3 4 ")
        if not any(place.parent.iterdir()):
            place.parent.rmdir()
    sound = ("\n".join(rows) + "\n").encode()
    cases = [sound, b"", b"\0", b"\n" * 99, sound.replace(b",", b'"'), sound + b"x" * 200_000]
    cases += [damaged(sound, generator) for _ in range(fuzz // 4)]

    def work(case):
        (root / "LOC_val_solution.csv").write_bytes(case)
        return "refused" if refusal(read_all, root) else "read"

    said = outcomes(work, cases, seconds=SECONDS)
    assert said[0] == "read"
    tell_of(
        *(tell, said, "Kaggle's `LOC_val_solution.csv` says anything"),
        "bytes flipped, cut, put in, taken out; empty, NUL, quotes, a field of 200,000 letters",
    )


def test_what_a_tar_may_hold(tmp_path, fuzz, tell):
    root, generator = tmp_path / "tars", np.random.default_rng(0)
    labels = (b"0", b"1", b"0" * 5000, b"9" * 15, b"10000000")
    for number, label in enumerate(labels):
        pack(root / f"{number}.tar", samples(("a", "b"), (b"0", label)))
    about = [b'{"label": 1}', b'{"label": {}}', b'{"label": NaN}', b"[", b"[" * 10**5, b"\xff"]
    for number, text in enumerate(about):
        image = dict(samples())["a.jpg"]
        pack(root / f"json-{number}.tar", [("a.jpg", image), ("a.json", text)])
    pack(root / "long.tar", samples(("a", "x/" * 200 + "b" * 300)))
    sound = [path.read_bytes() for path in sorted(root.iterdir())]
    shutil.rmtree(root)
    cases = list(sound)
    for number in range(fuzz):
        data = bytearray(sound[number % len(sound)])
        if number % 2:  # within a header, whose checksum may then be right again
            start = 512 * int(generator.integers(len(data) // 512))
            header = damaged(bytes(data[start : start + 512]), generator)[:512].ljust(512, b"\0")
            total = sum(header[:148]) + sum(header[156:]) + 8 * 32
            data[start : start + 512] = header[:148] + b"%06o\0 " % total + header[156:]
            cases.append(bytes(data))
        else:
            cases.append(damaged(bytes(data), generator))

    def work(case):
        shutil.rmtree(root, ignore_errors=True)
        pack(root / "val.tar", samples(("v",), (b"0",)))
        (root / "train.tar").write_bytes(case)
        if refusal(convert, root, tmp_path / "out", skip_broken=True):
            shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
            return "refused"
        assert not refusal(check, tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
        return "read"

    said = outcomes(work, cases, seconds=SECONDS)
    tell_of(
        *(tell, said, "a tar of images is damaged, or holds nonsense"),
        "bytes flipped, cut, put in, taken out, also in headers under a right checksum; labels "
        "that are no numbers, numbers of 15 and 5,000 digits, JSON of other types",
    )


def test_what_the_facts_of_an_encoder_may_say(tmp_path, fuzz, tell):
    path, generator, chance = tmp_path / "encoder.safetensors", np.random.default_rng(0), Random(0)
    save_file({"x": torch.zeros(1)}, path)
    sound = {"backbone": "resnet10t", "backbone_args": {}, "image_size": 32, "mean": [0, 0, 0]}
    cases = [json.dumps(value).encode() for value in VALUES]
    cases += [b"", b"{", b"\xff", b"[" * 100_000, json.dumps(sound).encode()]
    cases += [json.dumps(mutate(sound, chance)).encode() for _ in range(fuzz // 2)]
    cases += [damaged(json.dumps(sound).encode(), generator) for _ in range(fuzz // 2)]

    def work(case):
        path.with_suffix(".json").write_bytes(case)
        return "refused" if refusal(read_network, path) else "read"

    said = outcomes(work, cases, seconds=SECONDS)
    tell_of(
        *(tell, said, "the facts beside an encoder (`encoder.json`) say anything"),
        "values of every type, no JSON, bytes flipped, cut, put in; weights that are not its own",
    )
