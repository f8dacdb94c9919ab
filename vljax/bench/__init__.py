"""What a step costs: compiled ahead of time for machines that are not here, or measured here."""
