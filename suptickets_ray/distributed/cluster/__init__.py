"""The Ray cluster: session, capacity, failures, and shared storage."""
