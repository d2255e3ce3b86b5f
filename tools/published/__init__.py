"""The weights published for AlignQ: where they come from, what may arrive, and where it goes."""
