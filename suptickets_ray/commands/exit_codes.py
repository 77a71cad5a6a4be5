"""Exit codes of the commands; see also `supervisor.EXIT_FAILED`."""

EXIT_DONE, EXIT_USAGE, EXIT_INTERRUPTED = 0, 2, 130
