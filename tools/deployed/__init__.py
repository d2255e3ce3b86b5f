"""What the tools for files to ship have in common: flags, images to predict, test sets to evaluate on."""
