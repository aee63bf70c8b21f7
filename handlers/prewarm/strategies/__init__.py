"""Strategies: ways to get an Image-Volume onto a target. Each is a pure plan, from what was seen to
the next action."""

# A new image gets its last touches within moments of being active: a cache entry made before would
# be stale, and what is changed during an import is lost. In seconds
FIRST_QUIET = 2.0
