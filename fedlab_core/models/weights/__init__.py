"""Pre-trained weights: where they are found, how they are read, and the networks that they fit."""
