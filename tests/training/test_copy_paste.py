import torch

from sacl.training.finetune import random_squares


def test_every_image_gets_one_square_of_two_thirds_of_its_side():
    inside = random_squares(40, 30, torch.Generator().manual_seed(0), torch.device("cpu"))
    rows, columns = inside.any(dim=2), inside.any(dim=1)
    assert (inside.flatten(1).sum(dim=1) == 400).all()
    assert torch.equal(inside, rows[:, :, None] & columns[:, None, :])
    assert (rows.sum(dim=1) == 20).all()


def test_squares_lie_everywhere_and_by_the_generator():
    def drawn(seed):
        return random_squares(200, 12, torch.Generator().manual_seed(seed), torch.device("cpu"))

    assert drawn(1).any(dim=0).all()
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
