"""Onto a device by ssh: looked at, checked, installed, proven there."""
