"""A task file: scikit-learn's 1,797 real images of handwritten digits, and a small convolutional network.

    evalmode certify examples/digits/task.py

The functions that evalmode looks for are `model`, `test_data` and, as wanted, `train_data`, `prediction` and `metrics`.
The weights are trained once, in seconds, by running this file; they are kept beside it, in `build/`.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("build") / "weights.safetensors"
RECIPE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()  # an edited recipe trains anew

metrics = ["accuracy", "log loss"]


class Network(nn.Module):
    """8 x 8 pixels in, 10 logits out; batch norm and dropout are what training and evaluation mode disagree on."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout2d(0.1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(64 * 4 * 4, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def model(weights: str | Path | None = None) -> nn.Module:
    if weights is None:
        if recipe_of(WEIGHTS) != RECIPE:
            print("training examples/digits once, in seconds ...", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, __file__], check=True)  # apart: this process keeps its random streams
        weights = WEIGHTS
    with torch.device("meta"):  # no initial values to draw: they are about to be loaded
        network = Network()
    network.load_state_dict(load_file(weights), assign=True)
    return network


def train_data() -> tuple[Tensor, Tensor]:
    return images_and_labels()[0]


def test_data() -> tuple[Tensor, Tensor]:
    return images_and_labels()[1]


def prediction(outputs: Tensor) -> Tensor:
    return outputs.argmax(1)


def images_and_labels() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The training part and the test part: 1,257 and 540 images, every digit with its share in each."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=540, stratify=labels, random_state=0)
    train_images, test_images = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) / 16 for part in parts[:2])
    train_labels, test_labels = (torch.tensor(part) for part in parts[2:])
    return (train_images, train_labels), (test_images, test_labels)


def train(epochs: int = 30, batch_size: int = 64, seed: int = 0) -> Network:
    """The trained network: the same bits on every run of one machine."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    images, labels = train_data()
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    batches = len(images) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=epochs * batches)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch_size)[:batches]:
            rows, columns = torch.randint(0, 3, (2,)).tolist()  # move the images by up to one pixel
            moved = F.pad(images[chosen], (1, 1, 1, 1))[..., rows : rows + 8, columns : columns + 8]
            optimizer.zero_grad()
            F.cross_entropy(network(moved), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return network


def recipe_of(path: Path) -> str | None:
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("recipe")


def keep(network: nn.Module, path: Path) -> None:
    """Write the weights in one step: who reads meanwhile, or trains as well, sees a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(save(network.state_dict(), {"recipe": RECIPE, "torch": torch.__version__}))
    os.replace(file.name, path)


if __name__ == "__main__":
    keep(train(), WEIGHTS)
