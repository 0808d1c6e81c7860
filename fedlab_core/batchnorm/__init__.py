"""Batch normalisation in federated learning: FedTAN, its neighbours, and the measures that explain them."""

from fedlab_core.batchnorm.fedtan import LOCAL, FedTAN, UnionSGD
from fedlab_core.batchnorm.lockstep import Ledger, batch_norms, lock_step, synchronised_gradients

__all__ = ["LOCAL", "FedTAN", "Ledger", "UnionSGD", "batch_norms", "lock_step", "synchronised_gradients"]
