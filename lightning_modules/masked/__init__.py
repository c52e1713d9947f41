"""Masked autoencoding: which cells are hidden, encoders that do not see them, and the guess."""
