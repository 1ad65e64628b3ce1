"""Files, versions and progress bars."""
