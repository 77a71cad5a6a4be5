"""The Ray cluster: joining it, its capacity, its failures, and the storage that all its machines see."""
