"""Writes a fixture of `idefics-vision`: features of the IDEFICS v1 vision tower for image sizes that it was not trained for."""

from pathlib import Path

import torch
from idefics1 import load1
from safetensors.torch import save_file

XTASK = Path(__file__).resolve().parent.parent
GRIDS = [(6, 3), (2, 5), (8, 2)]  # rows and columns of patches; the last has 16, like the trained 4 by 4 grid


def main() -> None:
    """Write pixels and features for each grid."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(3)
    tower = load1(XTASK / "checkpoints" / "idefics1-float").model.vision_model
    patch = tower.config.patch_size
    tensors = {}
    for rows, columns in GRIDS:
        pixels = torch.randn(1, 3, rows * patch, columns * patch, generator=generator)
        with torch.no_grad():
            features = tower(pixels, interpolate_pos_encoding=True).last_hidden_state
        tensors |= {f"{rows}x{columns}.pixel_values": pixels, f"{rows}x{columns}.features": features}
    folder = XTASK.parent / "idefics-vision" / "tests" / "fixtures"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "interpolated.safetensors")


if __name__ == "__main__":
    main()
