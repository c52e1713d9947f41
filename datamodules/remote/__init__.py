"""Files behind an address, and where they are kept."""
