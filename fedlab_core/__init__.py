"""Federated learning you can watch. Read the files from the ground up; imports point down only.

Ground floor
    randomness, data/, partition, models/, costs            addressed draws; who holds what; networks; what they cost
    state, settings                                         parameters and buffers by name; what a run depends on
One round
    local/                                                  one client's local training
    methods/                                                what differs between algorithms: hooks around one loop
    engines/                                                where clients run: loop (reference), threads, stacked, ray
    round, history, checkpoint, standing, federation        one round; what a run remembers; saved runs; the loop
What the papers add
    batchnorm/, pretraining/, finetuning/, layerwise/,      methods and measures
    probes/                                                 lines, planes, mixtures, gradients, curvature
A run as data
    registry, experiment                                    every name, also your own (`register`); an experiment
Faces: nothing above imports them
    plots/, studies/, claims                                figures; the experiments of each notebook; their verdicts
    workbench/                                              panels
    cli                                                     the command `fedlab-core`
"""

from fedlab_core.about import version
from fedlab_core.registry import register

__version__ = version()

__all__ = ["__version__", "register"]
