"""From the bytes of a file to what a network takes."""
