"""The engine: intake, lanes, runner, cloud adapter and commands of image-volume-worker."""
