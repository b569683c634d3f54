"""How long data is kept, what is never written, and how it is erased, backed up and restored."""
