"""Policy: what happens to a file between the user and the tape."""
