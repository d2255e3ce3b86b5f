"""The integer form of a network."""
