"""How partitions, batch-norm policies and options of fine-tuning are written for readers."""

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
KNOB_TERMS = {
    "alpha": "Dirichlet label skew",
    "E": "epochs E",
    "B": "batch size B",
    "C": "fraction C",
    "lr": "learning rate",
    "seed": "seed",
    "start": "start",
}
"""Knobs of labs that stand for a term of the glossary."""
TUNING_WORDS = {
    "tokens": "number of learnt tokens",
    "reduction": "the bottleneck is so many times narrower than the model",
    "shared": "one bottleneck for all blocks",
    "rank": "of the product B A",
    "alpha": "B A is multiplied by alpha / rank",
    "freeze_a": "A stays as it was drawn, the same at every client: FFA-LoRA (Sun et al. 2024)",
    "delta": "a frozen matrix beside B A, to which FLoRA and FedEx-LoRA add; they need it",
}
