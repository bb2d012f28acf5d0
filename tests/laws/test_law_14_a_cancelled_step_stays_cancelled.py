"""Law 14: a step that the user's own cancel scope cancelled stays cancelled."""
