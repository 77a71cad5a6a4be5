"""Imported first by every worker process of a local Ray, before Ray's libraries and torch."""

from suptickets_ray.process_start import collect_rarely

collect_rarely()
