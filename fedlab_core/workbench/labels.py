"""How partitions and batch-norm policies are written for readers."""

PARTITION_LABELS = {
    "iid": "IID",
    "shards": "label shards",
    "label_blocks": "blocks of labels",
    "dirichlet": "Dirichlet labels",
    "quantity": "quantity skew",
    "natural": "natural groups",
    "pooled": "pooled (one client)",
    "given": "as given",
}
POLICY_LABELS = {
    "average": "average everything (FedAvg)",
    "local_statistics": "local statistics (SiloBN)",
    "local": "local layer (FedBN)",
    "frozen": "frozen statistics (FixBN)",
    "total_variance": "average, total variance",
}
