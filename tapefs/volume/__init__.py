"""What is on tape: label, pax members, journals, tails, and the sessions that move them."""
