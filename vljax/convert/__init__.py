"""From the original's checkpoints to our parameter tree, and back."""
