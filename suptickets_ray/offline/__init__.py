"""Works on stored tickets without Ray: evaluate, export, superpose again."""
