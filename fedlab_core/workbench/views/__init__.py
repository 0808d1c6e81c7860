"""Tabs of the workbench that belong to one notebook: each draws a run at a round."""
