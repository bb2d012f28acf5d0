"""Law 10: ambiguity is refused, at the call, before any effect."""
