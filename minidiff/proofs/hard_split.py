"""Can the questions of the hard split be answered? What its true answers score, and their copies
through the autoencoder: above that no edit can come.

Both oracles are told what a hard picture carries and read it without (evaluate/taken_off.py). That
must not make a wrong answer of the right one, nor an edit of a picture that nobody touched.
"""

import torch
from torch import Tensor

from minidiff.bench.items import KINDS, Item, items
from minidiff.evaluate.metrics import psnr
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, item_scores

N = 256


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """T of true pictures, of untouched sources and of copies; the copies' likeness in dB."""
    its = spread(n, seed)
    answers = torch.cat([item.answer for item in its])
    sources = torch.cat([item.image for item in its])
    copies = torch.cat([copied(pipe, part) for part in answers.split(16)])

    def edited(pictures: Tensor):
        """Do both oracles find the edit in them? (n,) of 0 and 1."""
        return item_scores(pictures, its, copies)["T"]

    likeness = psnr(copies, answers)
    return [
        averaged("true pictures that both oracles call edited as asked", edited(answers), 0.99),
        averaged("untouched sources that they call not edited", 1 - edited(sources), 0.99),
        averaged("the autoencoder's copies of the true pictures, dB to them", likeness, 28),
        averaged("copies that both oracles call edited as asked", edited(copies), 0.95),
    ]


def spread(n: int, seed: int) -> list[Item]:
    """n items of the hard split, the kinds in turn."""
    of_each = -(-n // len(KINDS))
    every = items("hard", of_each, seed=seed)
    in_turn = [every[k * of_each + i] for i in range(of_each) for k in range(len(KINDS))]
    return in_turn[:n]


@torch.no_grad()
def copied(pipe: Pipe, pictures: Tensor) -> Tensor:
    return pipe.decode(pipe.encode(pictures)).float().cpu().clamp(-1, 1)
