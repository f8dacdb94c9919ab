"""Media, text and batches on the host."""
