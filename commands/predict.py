"""`litcam predict`: what is on photos; or, with the options of `litcam fit`, on a data set."""

from collections.abc import Sequence

from litcam.commands import fit

PAGE = """\
usage: litcam predict PHOTO [PHOTO …] --ckpt_path FILE [OPTIONS]

  Names what is on photos: a table on the terminal, and a line for each photo in predictions.csv.
  Size, mean and std of the images and the names of the classes are those in the checkpoint. A photo
  that cannot be read is left out in one line.

PHOTO is a file or a folder. FILE is last.ckpt or best….ckpt of a run, or any network that
`litcam explain --models` takes: NAME=FILE, a folder of Hugging Face's hub, hf-hub:NAME.

Options
  --topk N              how many classes of each photo, the most probable ones (default: 3)
  --out FILE            default: predictions.csv
  --device NAME         cpu, cuda, cuda:1, mps; default: the accelerator of this machine, if any
  --batch_size N        photos that the network takes at once (default: 32)

A whole data set, on all devices: litcam predict --config FILE --data.root DIR --ckpt_path last
  runs the validation images with the options of `litcam fit`, and writes into the run's folder

For instance: litcam predict holiday/ --ckpt_path runs/pets/version_0/checkpoints/last.ckpt"""

GROUPS = ("--config", "-c", "--data", "--model", "--trainer", "--help-all", "--print_config")


def predict(args: Sequence[str]) -> None:
    """Names what is on photos or in a data set; `args` are the words after `litcam predict`.

    Raises:
        ValueError: If an option makes no sense, the checkpoint cannot be used, or no photo read.
    """
    if not args or not {"-h", "--help"}.isdisjoint(args):
        print(PAGE)
    elif any(word.startswith(GROUPS) for word in args):
        fit.run(["predict", *args])
    else:
        # torch takes seconds to import, and the page does not need it.
        from litcam.commands.explaining import named_photos

        named_photos.predict(args)
