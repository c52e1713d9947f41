"""Numbers for maps, as torchmetrics."""
