"""The console script: one file a verb."""
