"""Who runs where: the only layer that imports Ray."""
