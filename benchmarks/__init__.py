"""`make bench`: how fast rounds are, against the plain PyTorch loop that a good engineer writes."""
