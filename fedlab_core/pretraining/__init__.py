"""Starting points for federated learning, from random to pre-trained by the clients themselves."""

from fedlab_core.pretraining.named import STARTS, named_start, recipe
from fedlab_core.pretraining.objectives import MultiLabel, SelfSupervised, Siamese
from fedlab_core.pretraining.starts import Decentralised, Fractals, Start, Supervised, begin, make_start, transfer

__all__ = [
    "STARTS",
    "Decentralised",
    "Fractals",
    "MultiLabel",
    "SelfSupervised",
    "Siamese",
    "Start",
    "Supervised",
    "begin",
    "make_start",
    "named_start",
    "recipe",
    "transfer",
]
