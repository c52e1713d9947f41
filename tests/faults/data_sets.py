"""Small data sets in every layout, for the tests of what may be wrong with one."""

import io
import json
import tarfile

import xxhash
from damage import encoded, photo

from litcam.datamodules import ImageNetDataModule
from litcam.datamodules.shard_format import as_text

TINY = {
    "model": "Classifier",
    "model.backbone": "resnet10t",
    "model.backbone_args.channels": "[8,8,16,16]",
    "data": "ImageNetDataModule",
    "data.root": "photos",
    "data.image_size": "32",
    "data.batch_size": "4",
    "data.num_workers": "1",
    "trainer.max_epochs": "1",
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.logger": "false",
}
FIT = ["fit", *(word for name, value in TINY.items() for word in (f"--{name}", value))]


def write_photos(root, *, train=6, val=2, classes=("cat", "dog")):
    """Class folders of small JPEGs."""
    for split, count in (("train", train), ("val", val)):
        for place, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                photo(100 * place + number).save(folder / f"{number}.jpg")
    return root


def pack(path, members):
    """A tar of (name, content); a string as content is where a link of that name leads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def samples(names=("a", "b"), labels=(b"0", b"1")):
    """Members of a WebDataset tar: an image and its class for each name."""
    image = encoded("JPEG")
    for name, label in zip(names, labels, strict=True):
        yield f"{name}.jpg", image
        yield f"{name}.cls", label


def rewrite(root, change):
    """Has a manifest say something else, with the hash that belongs to it."""
    file = root / "litcam.json"
    manifest = json.loads(file.read_text())
    change(manifest, manifest["splits"]["train"])
    manifest.pop("xxh64", None)
    file.write_text(as_text(manifest))


def replace_column(root, name, data):
    """Puts another file in the place of a column, and has the manifest know it."""
    (root / "train" / name).write_bytes(data)
    sound = {"num_bytes": len(data), "xxh64": xxhash.xxh64(data).hexdigest()}
    rewrite(root, lambda all_, at: at["files"].update({name: sound}))


def read_all(root, **options):
    """Opens a data set as training does, and reads every image of it."""
    data = ImageNetDataModule(root, 2, num_workers=0, image_size=16, **options)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for index in range(len(loader.dataset)):
            loader.dataset.read(index)
    return data


def refusal(call, *args, **options):
    """The line in which something is refused, by litcam itself; nothing where it is not."""
    try:
        call(*args, **options)
    except (ValueError, OSError) as caught:
        error = caught
    else:
        return ""
    line, traceback = str(error), error.__traceback__
    while traceback.tb_next:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals["__name__"]
    assert module.startswith("litcam."), f"{module}: {type(error).__name__}: {line}"
    assert line and "\n" not in line, repr(line)
    return line


def listing(folder):
    """Every file below a folder with its content, and every link with its target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        place = str(path.relative_to(folder))
        if path.is_symlink():
            found[place] = str(path.readlink())
        elif path.is_file():
            found[place] = path.read_bytes()
    return found
