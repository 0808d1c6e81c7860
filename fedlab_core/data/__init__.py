"""Data sets as tensors in memory, loaded by name."""

from fedlab_core.data.dataset import Dataset
from fedlab_core.data.load import data_root, dataset_names, load_dataset, missing_data

__all__ = ["Dataset", "data_root", "dataset_names", "load_dataset", "missing_data"]
