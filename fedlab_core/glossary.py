"""Terms of the field in one sentence each, with where they come from: for hovers in panels and for the docs."""

from fedlab_core.check import checked

GLOSSARY: dict[str, str] = {
    "federated learning": "Training one model on data that stays with the clients who own it; a server averages what "
    "the clients send back (McMahan et al. 2017).",
    "client": "A holder of data that trains the model on its own examples: a phone, a hospital, a person.",
    "server": "Sends the global model out, and makes the next one from what the sampled clients send back.",
    "round": "Server samples clients, each trains the global model on its own data, and the server averages what they "
    "send back (McMahan et al. 2017, algorithm 1).",
    "global model": "The model that the server holds after a round and sends to the clients of the next.",
    "local step": "One gradient step of one client on one batch of its own data.",
    "fraction C": "Share of the clients that are sampled in a round; 0 means a single client (McMahan et al. 2017).",
    "epochs E": "Passes of a sampled client over its own data in one round (McMahan et al. 2017).",
    "batch size B": "Examples per local step; all: a client's whole data, one step an epoch (McMahan et al. 2017).",
    "learning rate": "Length of a local step per unit of gradient.",
    "accuracy": "Share of the examples of the global test set that the model classifies correctly.",
    "loss": "Mean cross-entropy per target on the global test set, in nats.",
    "nat": "Unit of information with natural logarithms: 1 nat = 1.443 bits; guessing among c classes costs log c.",
    "client spread": "Each sampled client's own model, after its local training, evaluated on the global test set; "
    "while it is watched on 1,000 of its examples, the same in every round.",
    "IID": "Every client's examples are a uniform random share of all examples.",
    "label shards": "Examples sorted by label and cut into shards; each client holds a few shards, so few labels "
    "(McMahan et al. 2017, section 3).",
    "Dirichlet label skew": "Each class is divided among the clients in proportions drawn from a Dirichlet "
    "distribution; a small alpha gives each client few labels (Hsu et al. 2019).",
    "quantity skew": "Clients hold the same mix of labels but log-normally different numbers of examples.",
    "input skew": "Clients see the same kind of images differently: rotated, in another contrast, or noisy.",
    "natural groups": "Each client is one real author, speaker or source of the data.",
    "drift": "Mean Euclidean distance ||w_k - w_t|| between the sampled clients' models after local training and the "
    "model they received, weighted as in the average.",
    "relative drift": "Drift divided by the norm of the received model: mean ||w_k - w_t|| / ||w_t||.",
    "update": "What a client's local training changed: its model minus the model it received, w_k - w_t.",
    "cosine": "Mean cosine between the updates of two sampled clients: 1 all pull the same way, 0 orthogonal, below 0 "
    "they pull apart; it needs two clients.",
    "gradient diversity": "Sum of the squared sizes of the updates over the squared size of their sum: 1/m for m equal "
    "updates, 1 for orthogonal ones, above 1 where updates cancel (Yin et al. 2018).",
    "stability": "How little accuracy changes when the sampled clients' models are mixed with random weights instead "
    "of the weights of the average.",
    "mixture": "A weighted mean of the sampled clients' models, with weights that add up to 1.",
    "basin": "A connected region of low loss; two models share one if the loss hardly rises on the line between them "
    "(Frankle et al. 2020).",
    "barrier": "Highest rise of the loss on the line between two models above the straight line between their losses "
    "(Frankle et al. 2020).",
    "twin round": "A round played again from the same model with one cause of loss switched off: label skew, local "
    "steps, partial participation or batch-norm statistics.",
    "centralised": "The same model trained on all clients' data in one place, with as many gradient steps: what "
    "federated learning is measured against.",
    "centralised (union batches)": "No federated algorithm but the reference for one: each step is a gradient step on "
    "the batches of all sampled clients together.",
    "communication": "Bytes that travel between server and clients, both ways, counted from the tensors that are sent.",
    "gradient steps": "Local steps of all sampled clients, added up.",
    "divergence": "The run has left the finite numbers: a loss or a parameter is infinite or not a number, and no "
    "later round can bring it back.",
    "batch norm": "Normalises features with the mean and variance of the batch in training and with running statistics "
    "in evaluation (Ioffe and Szegedy 2015).",
    "batch-norm policy": "What happens to gains, biases and running statistics of batch normalisation when models are "
    "averaged; every federation must name one.",
    "average everything (FedAvg)": "Gains, biases and running statistics are averaged like any parameter.",
    "local statistics (SiloBN)": "Running statistics stay with each client (Andreux et al. 2020).",
    "local layer (FedBN)": "The whole batch-norm layer stays with each client (Li et al. 2021).",
    "frozen statistics (FixBN)": "Clients normalise with running statistics that are kept (Zhong et al. 2023).",
    "average, total variance": "The averaged variance also counts how far the clients' means are apart.",
    "start": "What the network has learnt before the first round; random means nothing.",
    "fine-tuning": "Training a part of a pre-trained network, or small layers added to it; only that part travels.",
    "engine": "Where the clients' local training is computed; it changes the time a round takes, and at most rounding.",
    "seed": "Root of every random draw of a run: partition, initial weights, sampled clients, batches.",
    "fork": "A new run that shares the past of another up to a round and goes on from there with other settings.",
    "rewind": "Going back to the end of an earlier round; running on gives the same bits as before.",
    "stale": "The controls no longer say what the result shown was made with.",
    "FedAvg": "Clients take local SGD steps, the server averages their models by number of examples (McMahan et al. "
    "2017).",
    "FedSGD": "FedAvg with one step on all of a client's data: plain gradient descent (McMahan et al. 2017).",
    "FedProx": "FedAvg with a pull of strength mu towards the received model (Li et al. 2020).",
    "SCAFFOLD": "Control variates take the expected drift out of every local step (Karimireddy et al. 2020).",
    "FedNova": "Updates are divided by the clients' numbers of local steps before averaging (Wang et al. 2020).",
    "FedAvgM": "The server adds momentum to the mean update (Hsu et al. 2019).",
    "FedAdam": "The server takes the mean update for a gradient and applies Adam to it (Reddi et al. 2021).",
    "FedYogi": "The server takes the mean update for a gradient and applies Yogi to it (Reddi et al. 2021).",
    "FedDyn": "Dynamic regularisation bends the clients' objectives until they share the global minimiser (Acar et al. "
    "2021).",
    "MOON": "Features are pulled to the received model's and pushed from the client's own last ones (Li, He and Song "
    "2021).",
    "FedTAN": "Clients exchange the mean and variance of every batch-norm layer in their first local step, so that "
    "gradients are those of all data together (Wang et al., arXiv 2301.02982).",
    "FBN": "Batch normalisation with the server's statistics as constants within a round, so that all clients apply "
    "one function (Guerraoui et al., arXiv 2405.14670).",
    "HBN": "Batch normalisation with a learnt mix of the batch's and the server's statistics (Chen et al., arXiv "
    "2505.21877).",
    "layer-wise": "Self-supervised training of one unit of the network after the other, so that clients compute and "
    "send less (Guo et al., arXiv 2309.05213).",
    "LoRA": "Low-rank adaptation: a frozen weight matrix plus a trained product B A of two thin ones (Hu et al. 2022).",
    "FedSA-LoRA": "LoRA whose A is averaged while every client keeps its own B, so that there is no single global "
    "model (Guo et al., arXiv 2410.01463).",
    "FLoRA": "LoRA whose stacked factors are sent to every client, which adds their exact mean to its weights and "
    "begins with fresh ones (Wang et al., arXiv 2409.05976).",
    "FedEx-LoRA": "LoRA whose factors are averaged, and what that misses of the mean update is sent as well "
    "(Singhal et al., arXiv 2410.09432).",
    "median": "The server takes the median of the clients' models, coordinate by coordinate (Yin et al. 2018).",
    "trimmed mean": "The server leaves out the largest and smallest values of each coordinate and averages the rest "
    "(Yin et al. 2018).",
    "geometric median": "The point with the smallest sum of distances to the clients' models (Pillutla et al. 2022).",
    "Krum": "The server takes the client's model that has the closest neighbours (Blanchard et al. 2017).",
    "Multi-Krum": "The mean of the models with the closest neighbours (Blanchard et al. 2017).",
    "norm clipping": "Updates are scaled down to a largest norm before averaging (Sun et al. 2019).",
    "local only": "Every client trains its own model and nothing is sent: the reference that federated learning has to "
    "beat.",
}
"""A term, and its definition in a sentence."""


@checked
def define(term: str) -> str:
    """A term's definition; upper and lower case do not matter, an unknown term is defined by nothing."""
    return _FOLDED.get(term.casefold(), "")


_FOLDED = {term.casefold(): sentence for term, sentence in GLOSSARY.items()}
