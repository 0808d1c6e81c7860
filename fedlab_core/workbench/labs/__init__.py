"""The labs of the notebooks: one plan per experiment, grouped by notebook."""
