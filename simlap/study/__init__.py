"""Studies: many experiments from one file."""
