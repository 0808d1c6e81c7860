"""Many clients as one network."""
