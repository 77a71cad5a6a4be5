"""What a local Ray imports first in each of its worker processes, before Ray's libraries and torch."""

from suptickets_ray.process_start import collect_rarely

collect_rarely()
