"""From clips and questions to answers."""
