"""Why it is so, and what to do: doctor, explain, status."""
