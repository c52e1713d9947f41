"""Where images come from: folders, layouts of others, shards."""
