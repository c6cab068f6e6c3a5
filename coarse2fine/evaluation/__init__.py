"""How well masks and objects agree with a reference."""
