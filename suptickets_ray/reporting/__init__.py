"""What a person sees of a run: the live view, the closing table and the HTML report. No Ray."""
