"""Law 13: a refused call leaves every file as it was."""
