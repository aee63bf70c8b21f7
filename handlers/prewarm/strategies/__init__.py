"""Strategies: ways to get an Image-Volume onto a target. Each is a pure plan, from what was seen to
the next action."""

# Seconds for which a new image must be unchanged. It often changes once more just after it became
# active: a cache entry from before would be stale, and a change during an import is lost
FIRST_QUIET = 2.0
