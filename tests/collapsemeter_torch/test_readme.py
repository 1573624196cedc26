"""The documents say what runs: README blocks are executed, and every metric is explained."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_training_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
            self.fc = nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.block(x))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(60, 16), torch.arange(60) % 10)
    model = Net()
    names = {
        "model": model,
        "loader": torch.utils.data.DataLoader(data, batch_size=20),
        "criterion": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "epochs": 2,
    }
    (loop,) = (block for block in BLOCKS if "meter.batch" in block)
    exec(loop, names)
    assert len((tmp_path / "runs" / "reports.jsonl").read_text().splitlines()) == 2


def test_the_arrays() -> None:
    names: dict[str, object] = {}
    for block in BLOCKS:
        if "cm." in block:
            exec(block, names)
    assert "fc" in str(names["comparison"].table())  # type: ignore[attr-defined]


def test_links_lead_somewhere() -> None:
    for source in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", source.read_text()):
            assert (source.parent / target).exists(), f"{source.name} links to {target}"
