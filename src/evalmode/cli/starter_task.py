"""A task for evalmode: a model and its data. It runs as it is; put your own in place.

evalmode certify THIS_FILE
"""

import torch
from torch import nn


def model(weights=None):  # type: ignore[no-untyped-def]
    """Your model. `weights` is what --weights gives; leave the parameter out if you never use it."""
    torch.manual_seed(0)  # only because this example is not trained
    network = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3))
    if weights is not None:
        network.load_state_dict(torch.load(weights, weights_only=True))
    return network


def test_data():  # type: ignore[no-untyped-def]
    """Your test data: a DataLoader, a Dataset, or a pair (inputs, targets) of tensors."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(200, 20, generator=generator)
    return inputs, inputs[:, :3].argmax(1)


# The rest is optional: remove the # of what you need. What is left out is inferred, and the certificate says how.
#
# def train_data():                  # as test_data; used where there is no test data
#     ...
#
# def split(batch):                  # a batch of your data → the model's inputs and the target
#     return batch["image"], batch["label"]
#
# def forward(model, inputs):        # how the model is called (default: a mapping as model(**inputs), a tuple as
#     return model(inputs)           # model(*inputs), anything else as model(inputs))
#
# def prediction(outputs):           # the model's outputs → its answer for each sample
#     return outputs.argmax(-1)
#
# def loss(outputs, target):         # one value per sample
#     return torch.nn.functional.cross_entropy(outputs, target, reduction="none")
#
# metrics = ["accuracy", "log_loss"]
