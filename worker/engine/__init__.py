"""The engine: keys from notifications, jobs to handlers, outcomes settled."""
