"""The worker seen from outside: metrics, activity, HTTP, logs, systemd."""
