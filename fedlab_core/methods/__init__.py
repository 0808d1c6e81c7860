"""What differs between federated algorithms, as hooks around one round loop; by name in `named.METHODS`."""
