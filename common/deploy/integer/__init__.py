"""The integer form of a network, and its int8 layers."""
