"""Side-by-side measurements; each module prints a table and, as its last line, JSON."""
