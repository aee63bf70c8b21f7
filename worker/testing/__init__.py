"""Doubles for tests, also of plug-ins: the cloud in memory, and a whole worker around it."""
