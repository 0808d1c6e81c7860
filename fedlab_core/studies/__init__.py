"""The experiments that the notebooks show, one file per notebook; each returns plain data."""
