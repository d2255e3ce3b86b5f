"""What a run is asked for: flags, tables, tasks, names of files."""
