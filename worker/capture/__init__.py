"""Notifications in files: read, record, replay."""
