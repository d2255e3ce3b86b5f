"""The page of tools/report.py."""
