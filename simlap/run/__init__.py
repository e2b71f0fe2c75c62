"""One experiment on Ray."""
