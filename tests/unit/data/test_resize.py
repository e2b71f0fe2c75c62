from __future__ import annotations

import torch

from simlap.data.resize import fit_square


def test_fit_square_keeps_the_proportions_and_the_centre() -> None:
    wide = torch.zeros(1, 3, 8, 16, dtype=torch.uint8)
    wide[..., 4:12] = 200
    assert torch.equal(fit_square(wide, 8), torch.full((1, 3, 8, 8), 200, dtype=torch.uint8))
    assert fit_square(wide, 5).shape == (1, 3, 5, 5)
    assert fit_square(wide.mT, 4).float().mean() > 150
    square = torch.zeros(2, 1, 6, 6, dtype=torch.uint8)
    assert fit_square(square, 6) is square
