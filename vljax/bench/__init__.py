"""Measurements of what runs here: speed beside the same work done by others."""
