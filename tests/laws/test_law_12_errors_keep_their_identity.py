"""Law 12: errors keep their identity, and nothing is imported because a file says so."""
