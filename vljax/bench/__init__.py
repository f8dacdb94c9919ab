"""What a step costs and how fast things go here, beside the same work done by others."""
