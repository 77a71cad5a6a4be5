"""The commands of the command line. Each reads its options, runs, and prints the result."""
