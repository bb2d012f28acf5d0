"""Law 11: a replay that asks for something else than was recorded is seen, and told."""
