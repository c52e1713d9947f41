"""`litcam fit | validate | test`: their help at once, their work by LightningCLI."""

from collections.abc import Sequence

from litcam.commands.cli.config_files import packaged_configs

PAGE = """\
usage: litcam {name} --config FILE [OPTIONS]

  {purpose}

The experiment
  --config FILE               {configs}
                              or a file of yours; later ones win over earlier ones
  --data.root DIR             folder with train/<class> and val/<class>, or Kaggle's ImageNet
  --model.backbone NAME       any timm model
  --model.weights FILE        start from weights you have, not from timm's as finetune_* does
  --model.lr 3e-4 --data.batch_size 64 --trainer.max_epochs 30

The run
  --trainer trainer/FILE      {trainers}
  --trainer.callbacks.num_images 16     options of the last callback, GradCAM
  --trainer.logger.offline true         W&B without the network
  --ckpt_path last | FILE     {checkpoint}
  --print_config              print all settings and stop

More
  --model.help Classifier --data.help ImageNetDataModule --trainer.callbacks.help GradCAM
  --help-all                  every option there is

For instance: {example}"""

PURPOSE = {
    "fit": "Trains, and explains validation images at every epoch.",
    "validate": "Measures a checkpoint on the validation images and explains some of them.",
    "test": "Measures a checkpoint on the test images and explains some of them.",
}


def run(args: Sequence[str]) -> None:
    """Runs a subcommand of LightningCLI, the first of `args`, or prints its page."""
    if not {"-h", "--help"}.isdisjoint(args):
        print(page(args[0], packaged_configs()))
        return
    # torch and Lightning take seconds to import, and the page needs neither.
    from litcam.commands.running import training

    training.run(args)


def page(name: str, configs: list[str]) -> str:
    """The page of one of LightningCLI's subcommands."""
    experiments = [name for name in configs if "/" not in name and name != "base.yaml"]
    trainers = [name.partition("/")[2] for name in configs if name.startswith("trainer/")]
    example = f"litcam {name} --config finetune_resnet34.yaml --data.root DIR"
    return PAGE.format(
        name=name,
        purpose=PURPOSE[name],
        configs=f",\n{' ' * 30}".join(sorted(experiments)),
        trainers=", ".join(sorted(trainers)),
        checkpoint="go on where a run stopped" if name == "fit" else "the weights",
        example=example if name == "fit" else f"{example} --ckpt_path last",
    )
