"""Progress of a run for users: live view, log, timeline, result table."""
