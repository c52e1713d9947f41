"""What a run of LightningCLI adds: its folder, its first and last lines, its answers."""
