"""How to fine-tune a pre-trained Transformer in federated learning (the question of FedTune, arXiv 2211.08025).

    vit = with_head(backbone, num_classes, generator(seed, "head"))
    model = tune(vit, "bias", generator(seed, "tuning"))
    federation = Federation(dataset, partition, model, settings)

sends the biases and the classifier, and nothing else.
"""
