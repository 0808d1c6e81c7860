"""How to fine-tune a pre-trained Transformer in federated learning (the question of FedTune, arXiv 2211.08025).

    vit = with_head(backbone, num_classes, generator(seed, "head"))
    model = tune(vit, "bias", generator(seed, "tuning"))
    federation = Federation(dataset, partition, model, settings)

sends the biases and the classifier, and nothing else.
"""

from fedlab_core.finetuning.accounts import (
    TABLE,
    Payload,
    anatomy,
    cost_table,
    meta_clip,
    meta_vit_b_16,
    payload,
    payload_table,
    step_flops,
    training_memory,
)
from fedlab_core.finetuning.classifiers import (
    HEADS,
    TEMPLATES,
    CosineClassifier,
    TextPrompted,
    Tokenizer,
    class_means,
    cosine_classifier,
    with_head,
    zero_shot_weights,
)
from fedlab_core.finetuning.clip_loaders import load_clip, load_open_clip, load_open_clip_tokenizer, load_tokenizer
from fedlab_core.finetuning.loaders import STATISTICS, load_vit_b_16
from fedlab_core.finetuning.modules import Adapted, Bottleneck, Gated, LoRA, Prompted
from fedlab_core.finetuning.shots import few_shot, few_shot_clients
from fedlab_core.finetuning.tuning import FAMILIES, TUNINGS, Tuning, tune

__all__ = [
    "FAMILIES",
    "HEADS",
    "STATISTICS",
    "TABLE",
    "TEMPLATES",
    "TUNINGS",
    "Adapted",
    "Bottleneck",
    "CosineClassifier",
    "Gated",
    "LoRA",
    "Payload",
    "Prompted",
    "TextPrompted",
    "Tokenizer",
    "Tuning",
    "anatomy",
    "class_means",
    "cosine_classifier",
    "cost_table",
    "few_shot",
    "few_shot_clients",
    "load_clip",
    "load_open_clip",
    "load_open_clip_tokenizer",
    "load_tokenizer",
    "load_vit_b_16",
    "meta_clip",
    "meta_vit_b_16",
    "payload",
    "payload_table",
    "step_flops",
    "training_memory",
    "tune",
    "with_head",
    "zero_shot_weights",
]
