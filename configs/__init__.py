r"""Experiments as data: YAML files for \`litcam fit --config\`."""
