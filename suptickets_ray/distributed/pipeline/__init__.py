"""The main job on Ray: pretraining, exploration, superposition."""
