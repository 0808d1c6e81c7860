"""Federated learning you can watch. Read the files from the ground up; imports point down only.

Ground floor
    randomness, data/, partition, feature_skew, models/     addressed draws; who holds what; networks
One round
    state, settings                                         parameters and buffers by name; what a run depends on
    methods/                                                what differs between algorithms: hooks around one loop
    engines/                                                where clients run: loop (reference), threads, stacked, ray
    costs, drift, sampling, history                         bytes and steps, geometry of updates, who takes part
    federation, checkpoint, references, experiment          the loop; saved runs; what to compare with; a run as data
What the papers add
    selfsupervised, batchnorm/, pretraining/,               methods and measures
    finetuning/, layerwise/
    probes/                                                 lines, planes, mixtures, gradients, curvature
Faces: nothing above imports them
    studies/, claims                                        the experiments of each notebook, and their verdicts
    plots/, views/, browse, workbench/                      figures, tabs, and the panel
"""
