"""SQLite: the only package that says SQL."""
