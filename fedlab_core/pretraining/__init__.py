"""Starting points for federated learning, from random to pre-trained by the clients themselves."""

from fedlab_core.pretraining.objectives import MultiLabel, SelfSupervised, Siamese
from fedlab_core.pretraining.starts import Decentralised, Fractals, Start, Supervised, begin, make_start, transfer

__all__ = [
    "Decentralised",
    "Fractals",
    "MultiLabel",
    "SelfSupervised",
    "Siamese",
    "Start",
    "Supervised",
    "begin",
    "make_start",
    "transfer",
]
