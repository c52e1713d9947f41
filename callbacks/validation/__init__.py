"""What a validation gives: its batches, the images that are shown, their pixels."""
