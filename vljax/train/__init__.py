"""Training: only what is unfrozen has gradients, moments and saved state."""
