"""Traps that others have met, in the code of run(): see the tests of the laws for the rest."""
