"""The HTTP edge: one resource a file. It parses, asks, and answers; it decides nothing."""
