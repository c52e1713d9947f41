"""Where pictures and curves go."""
