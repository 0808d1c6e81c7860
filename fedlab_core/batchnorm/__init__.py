"""Batch normalisation in federated learning: FedTAN, its neighbours, and the measures that explain them."""
