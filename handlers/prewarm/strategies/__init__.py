"""Strategies: ways to get an Image-Volume onto a target. Each is a pure plan, from what was seen to
the next action."""
