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
PARTITION_WORDS = {
    "per_client": "shards of each client; with two, most clients see two labels",
    "skew": "share of the examples that are dealt out by label, the others at random",
    "alpha": "concentration: small gives each client few classes, large the same mix to all",
    "sigma": "how unequal the clients' numbers of examples are; 0: all equal",
    "min_size": "least number of examples of a client",
}
MODEL_WORDS = {
    "hidden": "width of each hidden layer",
    "groups": "channels are normalised in so many groups, where the norm is group",
    "channels": "channels of each stage, the first one first",
    "gamma_init": 'gains of the norm begin as "ones", or "uniform": drawn between 0 and 1',
    "embedding": "numbers that stand for a character",
    "layers": "LSTM layers, one on top of the other",
    "fused": "PyTorch's own LSTM, which is faster; off: the same function in elementary operations",
    "patch": "side of the square patches that an image is cut into, in pixels",
    "dim": "width of a token",
    "depth": "number of blocks",
    "heads": "attention heads of a block",
    "mlp_ratio": "width of a block's hidden layer, in widths of a token",
    "enlarge": "images are enlarged so many times first",
}
