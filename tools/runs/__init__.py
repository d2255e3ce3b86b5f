"""Many runs of the tasks' programs: which, in what order, started where, and their tables."""
