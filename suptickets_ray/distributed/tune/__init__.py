"""A search with Ray Tune. Its trials share pretrained networks and tickets."""
