"""What networks are measured by: levels, relations, features, parity and rounding error."""
