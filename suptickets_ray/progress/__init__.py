"""What a person who watches a run sees: live view, log, timeline, closing table."""
