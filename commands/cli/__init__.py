"""How words and config files become options, and mistakes one line."""
