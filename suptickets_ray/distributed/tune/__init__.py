"""A search with Ray Tune, whose trials share pretraining and tickets."""
