"""Starting points for federated learning, from random to pre-trained by the clients themselves."""
