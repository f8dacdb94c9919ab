"""Strategies as data: a mesh, and which logical axis lies on which of its axes."""
