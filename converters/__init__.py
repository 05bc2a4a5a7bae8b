"""Converters: one file each, imported on first use, run in a worker process."""
