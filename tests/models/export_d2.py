"""Export the digit recogniser as a `torch.export` program: `python -m tests.models.export_d2 PACKAGE OUT`.

Run as a child, since it brings torch. Its class comes from the package's own file, its weights load with
`weights_only=True`.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any


def export(package: Path, out: Path) -> None:
    """Write the program: `x` float32 [N, 1, 28, 28] to `output_0` float32 [N, 10], N free."""
    import torch

    model = load(package)
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(model, (torch.zeros(2, 1, 28, 28),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, out)


def load(package: Path) -> Any:
    """Return the network with its weights, in evaluation mode."""
    import torch

    folder = package / "digit_recognizer"
    spec = importlib.util.spec_from_file_location("digit_recognizer_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.CNN()
    weights = folder / "models" / "handwriting_model.pth"
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return model.eval()


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
