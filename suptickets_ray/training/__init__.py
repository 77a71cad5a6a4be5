"""Training on one process or one DDP rank: torch, no Ray."""
