"""Watch neural collapse in a PyTorch training loop: two lines in it, one after each epoch."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from collapsemeter.sinks import Fan
from collapsemeter_torch import CollapseMeter

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)
loader = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(images, labels), batch_size=64, shuffle=True
)

model = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
meter = CollapseMeter(model, num_classes=10)
with Fan("runs/loop/events", "runs/loop/reports.jsonl") as sink:
    for epoch in range(5):
        for inputs, targets in loader:
            with meter.batch(targets):
                loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        report = meter.compute()
        meter.reset()
        sink.write(epoch, report)
        print(f"epoch {epoch}\n{report.table()}")
print(meter.observe(loader, phase="frozen-train").summary())
