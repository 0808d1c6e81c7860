"""The one table of names: what an experiment as plain data, and every menu, may choose from."""

from fedlab_core.batchnorm.fedtan import FedTAN, UnionSGD
from fedlab_core.layerwise.method import LayerWise
from fedlab_core.methods import METHODS

METHODS.update(fedtan=FedTAN, union_sgd=UnionSGD, layer_wise=LayerWise)
