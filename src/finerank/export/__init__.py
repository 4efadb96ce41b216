"""A trained run becomes a bundle that a server can load."""
