"""The HTML pages about runs and searches."""
