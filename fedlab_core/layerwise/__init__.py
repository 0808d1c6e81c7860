"""Federated layer-wise learning and depth dropout (Guo et al., arXiv 2309.05213), and what they save."""
