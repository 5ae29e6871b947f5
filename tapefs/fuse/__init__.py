"""The mount: pyfuse3 operations over the archive."""
