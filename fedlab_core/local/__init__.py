"""One client's local training, in plain PyTorch: what it is given, what it hands back, and the steps in between."""
