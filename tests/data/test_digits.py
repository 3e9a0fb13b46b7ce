"""The digits: all of them, in range, split once and for all."""

import torch

from working_papers.data.digits import load_digits


def test_digits_are_all_there() -> None:
    train, test = load_digits()
    assert (len(train), len(test)) == (1200, 597)
    assert train.images.shape == (1200, 1, 8, 8) and train.flat().shape == (1200, 64)
    assert train.images.dtype == torch.float32 and train.labels.dtype == torch.int64
    both = torch.cat([train.images, test.images])
    assert both.min() == 0 and both.max() == 1
    assert set(torch.cat([train.labels, test.labels]).tolist()) == set(range(10))
    assert load_digits(torch.float64)[0].images.dtype == torch.float64
