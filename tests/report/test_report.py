"""The report of a run: what is on the page, and that a browser shows it."""

import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from litcam.explain import scale_maps
from litcam.explain.figures import GAP, overlay, pack_map
from litcam.report.pictures import read_heatmaps
from litcam.report.writing import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
EVIL = '</script><img src=x onerror="alert(1)"><b>&amp;'
GRIDS = {"predicted": (3, 4), "true": (7, 5)}


def random_picture(seed, size=(48, 64)):
    """Smooth, so that compression changes little."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def heatmap_line(folder, number, view, epoch, **facts):
    maps = np.random.default_rng(epoch + 100 * number).random(GRIDS[view], np.float32)
    file = folder / f"epoch-{epoch}" / f"{view}-{number}.jpg"
    file.parent.mkdir(parents=True, exist_ok=True)
    photo = random_picture(number)
    gap = np.full((photo.shape[0], GAP, 3), 255, np.uint8)
    Image.fromarray(np.concatenate([photo, gap, photo], 1)).save(file, quality=95)
    line = {
        "file": str(file.relative_to(folder)),
        "key": f"val/gradcam/{view}",
        "epoch": epoch,
        "step": 10 * epoch + 9,
        "tiles": 2,
        "index": number,
        "image": f"photo {number}",
        "class_name": "cat",
        "label_name": "cat",
        "predicted_name": "dog",
        "probability": 0.25,
        "confidence": 0.5,
        "correct": False,
        "map": pack_map(maps),
        "map_max": float(maps.max()),
        "grid": list(GRIDS[view]),
        "problem": "",
        "layer": "layer4",
        "method": "gradcam",
        **facts,
    }
    with (folder / "images.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return maps


@pytest.fixture
def run(tmp_path):
    """Two images, three epochs, two views; the last map of image 1 is flat."""
    folder = tmp_path / "pets" / "version_0"
    for epoch in range(3):
        for image in range(2):
            for view in GRIDS:
                flat = {"problem": "map is flat"} if (epoch, image) == (2, 1) else {}
                heatmap_line(folder / "gradcam", image, view, epoch, **flat)
    (folder / "metrics.csv").write_text(
        "epoch,step,train/loss,val/acc1,val/gradcam/energy_inside,val/gradcam/energy_inside_chance\n"
        "0,4,2.0,,,\n0,9,,0.5,0.3,0.1\n1,14,1.5,,,\n1,19,,0.75,0.4,0.1\n2,29,nan,0.7,0.45,0.1\n"
    )
    (folder / "config.yaml").write_text(f"seed: 0\nname: {EVIL}\n")
    return folder


def read_page(file):
    """The page's text and its data."""
    text = file.read_text()
    found = re.search(r'<script id="run" type="application/json">(.*?)</script>', text, re.S)
    return text, json.loads(found[1])


def test_everything_is_on_the_page(run):
    text, data = read_page(write_report(run))
    assert "<title>pets / version_0</title>" in text and "seed: 0" in text
    (group,) = data["heatmaps"]
    assert [stop["epoch"] for stop in group["stops"]] == [0, 1, 2]
    assert group["views"] == ["predicted", "true"]
    assert [image["name"] for image in group["images"]] == ["photo 0", "photo 1"]
    assert group["images"][1]["maps"]["true"][2]["problem"] == "map is flat"
    charts = {chart["title"]: chart["lines"] for chart in data["curves"]}
    assert list(charts) == ["loss", "acc1", "gradcam/energy_inside"]
    assert charts["loss"][0]["y"] == [2.0, 1.5]  # NaN is left out
    assert [line["dashed"] for line in charts["gradcam/energy_inside"]] == [False, True]
    assert ["best val/acc1, epoch 1", "0.75"] in data["facts"]
    assert ["gradcam/energy_inside", "0.45 (chance 0.10)"] in data["facts"]


def test_what_comes_from_data_is_escaped(run):
    heatmap_line(run / "gradcam", 2, "true", 0, image=EVIL, class_name=EVIL, label_name=EVIL)
    text, data = read_page(write_report(run))
    assert EVIL not in text and "<img src=x" not in text
    assert data["heatmaps"][0]["images"][2]["name"] == EVIL
    assert "&lt;/script&gt;" in text


def test_it_asks_nothing_of_a_network(run):
    text, _ = read_page(write_report(run))
    addresses = set(re.findall(r"\w+://[^\s\"'`)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text


def test_a_resumed_and_a_killed_run(run):
    lines = run / "gradcam" / "images.jsonl"
    heatmap_line(run / "gradcam", 0, "true", 1, probability=0.9)  # done again
    with lines.open("a") as file:
        file.write('{"file": "epoch-1/tr')
    _, data = read_page(write_report(run))
    (group,) = data["heatmaps"]
    assert len(group["stops"]) == 3
    assert group["images"][0]["maps"]["true"][1]["probability"] == 0.9


def test_missing_and_broken_pictures(run):
    (run / "gradcam" / "epoch-0" / "predicted-0.jpg").unlink()
    for file in (run / "gradcam").glob("epoch-*/*-1.jpg"):
        file.write_bytes(b"no picture")
    _, data = read_page(write_report(run))
    assert [image["name"] for image in data["heatmaps"][0]["images"]] == ["photo 0"]


@pytest.mark.parametrize("what", ["metrics.csv", "gradcam", "config.yaml"])
def test_any_part_may_be_missing(run, what):
    path = run / what
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_report(run)


def test_a_folder_of_no_run(tmp_path):
    with pytest.raises(ValueError, match="holds no metrics"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def decode(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))


def test_reconstructions(tmp_path):
    folder = tmp_path / "reconstructions"
    tiles = [random_picture(seed) for seed in range(4)]
    gap = np.full((48, GAP, 3), 255, np.uint8)
    joined = [part for tile in tiles for part in (tile, gap)][:-1]
    for epoch in range(40):
        line = {"file": f"epoch-{epoch}.png", "key": "val/reconstructions", "epoch": epoch}
        line |= {"step": epoch, "tiles": 4, "index": 0, "image": "photo 0", "psnr": 10 + epoch}
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.concatenate(joined, 1)).save(folder / line["file"])
        with (folder / "images.jsonl").open("a") as file:
            file.write(json.dumps(line | {"borrowed": True, "mask_share": 0.75}) + "\n")
    _, data = read_page(write_report(tmp_path))
    (group,) = data["reconstructions"]
    epochs = [stop["epoch"] for stop in group["stops"]]
    assert len(epochs) == 24 and epochs[0] == 0 and epochs[-1] == 39
    (image,) = group["images"]
    assert [made["psnr"] for made in image["made"]] == [10 + epoch for epoch in epochs]
    shown = [image["masked"], image["made"][0]["picture"], image["original"]]
    for address, tile in zip(shown, [tiles[0], tiles[2], tiles[3]], strict=True):
        assert np.abs(decode(address).astype(int) - tile).mean() < 8  # compressed
    assert "25%" in group["about"] and "mean and contrast" in group["about"]


def test_figures_of_explain(run):
    folder = run / "cats"
    folder.mkdir()
    Image.fromarray(random_picture(0)).save(folder / "figure.png")
    facts = [{"model": "resnet34", "method": "gradcam"}, {"model": "vgg16", "method": "gradcam"}]
    (folder / "explain.json").write_text(json.dumps(facts))
    _, data = read_page(write_report(run))
    assert [figure["title"] for figure in data["figures"]] == ["cats: resnet34, vgg16; gradcam"]
    assert decode(data["figures"][0]["picture"]).shape == (48, 64, 3)


def test_alarms(run):
    line = {"epoch": 1, "step": 19, "title": "shortcut", "text": EVIL}
    (run / "gradcam" / "alarms.jsonl").write_text(json.dumps(line) + "\n")
    text, data = read_page(write_report(run))
    assert data["alarms"] == [line] and EVIL not in text


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def browser(request, tmp_path):
    """Opens a page in headless Chromium; gives its document after `script` ran."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    width, height = request.param

    def show(page, script):
        page.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--window-size={width},{height}", "--virtual-time-budget=3000"]
        command += [f"--user-data-dir={tmp_path / 'chromium'}", f"file://{page}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
        assert found, done.stderr[-2000:]
        return json.loads(found[1])

    return show


LOOK = """
setTimeout(() => {
  const slider = document.querySelector("#heatmaps input");
  slider.value = 1;
  slider.oninput();
  const found = [...document.querySelectorAll("#heatmaps canvas")].map((canvas) => ({
    width: canvas.width,
    height: canvas.height,
    pixels: Array.from(
      canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data),
  }));
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify({
    canvases: found,
    epoch: document.querySelector("#heatmaps output").textContent,
    wide: document.documentElement.scrollWidth - window.innerWidth,
    charts: document.querySelectorAll("#curves svg path").length,
    captions: [...document.querySelectorAll("#heatmaps figcaption")].map((c) => c.textContent),
  });
  document.body.append(out);
}, 1000);
"""


@pytest.mark.slow
def test_a_browser_draws_the_overlays_that_litcam_draws(run, browser):
    page = write_report(run)
    _, data = read_page(page)
    found = browser(page, LOOK)
    assert found["epoch"] == "epoch 1" and found["charts"] == 4
    assert found["wide"] <= 0  # nothing sticks out at the side
    assert found["captions"][0] == "catwrong: dog 0.50cat 0.25, max " + short(data)
    for number, canvas in enumerate(found["canvases"]):
        image = data["heatmaps"][0]["images"][number]
        photo = decode(image["photo"])
        maps = np.random.default_rng(1 + 100 * number).random(GRIDS["predicted"], np.float32)
        heat = scale_maps(torch.from_numpy(maps), photo.shape[:2]).numpy()
        drawn = np.array(canvas["pixels"], np.uint8).reshape(*photo.shape[:2], 4)[..., :3]
        # The map has 256 levels here, and a level more or less is another colour.
        difference = np.abs(drawn.astype(int) - overlay(photo, heat).astype(int))
        assert difference.mean() < 1 and difference.max() <= 8


def short(data):
    return f"{data['heatmaps'][0]['images'][0]['maps']['predicted'][1]['max']:.3g}"


def test_no_map_is_drawn_on_the_photo_of_another_epoch(tmp_path):
    for epoch in range(3):
        for image in range(2):
            heatmap_line(tmp_path / "gradcam", image, "true", epoch, index_known=False)
    (group,) = read_heatmaps(tmp_path)
    assert [stop["epoch"] for stop in group["stops"]] == [2]
    assert all(len(image["maps"]["true"]) == 1 for image in group["images"])
    assert "the last validation only" in group["about"]
