"""What a worker shows of itself: metrics, activity, HTTP, logs, systemd."""
