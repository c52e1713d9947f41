"""What happens around a network's forward: it is recorded, and the network left as it was."""
