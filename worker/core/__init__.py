"""Values and Protocols: what everything else is written in."""
