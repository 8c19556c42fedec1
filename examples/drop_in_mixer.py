"""A sequence mixer inside a module of your own: classify sequences of 8,192 samples of 3 sensors.

python examples/drop_in_mixer.py
"""

import time

import torch
from torch import nn

from longreach.mixers import Hyena


class Classifier(nn.Module):
    """Any mixer maps (batch, length, d_model) to the same shape, so it fits where an attention layer would."""

    def __init__(self, d_model: int = 32, n_classes: int = 10) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, d_model), nn.LayerNorm(d_model)
        self.mixer = Hyena(d_model, max_length=8192)
        self.head = nn.Linear(d_model, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the classes, from the mean over all positions."""
        x = self.embed(x)
        return self.head((x + self.mixer(self.norm(x))).mean(dim=1))


torch.manual_seed(1)
model, signals, labels = Classifier(), torch.randn(2, 8192, 3), torch.tensor([3, 7])
optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(8):
    began = time.perf_counter()
    loss = nn.functional.cross_entropy(model(signals), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    print(f"step {step}: loss {loss.item():.3f}, {time.perf_counter() - began:.2f} s")
