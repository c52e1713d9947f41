"""What is kept of a validation: maps and reconstructions, their numbers, and the alarm."""
