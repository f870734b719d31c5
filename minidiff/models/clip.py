"""CLIP: a text tower and an image tower trained to agree (Radford et al. 2021, arXiv 2103.00020).

The idea: in a batch of n pairs, each picture must find its own caption among n, and each caption
its own picture. No labels beyond the pairing, yet the text states that come out tell colours and
shapes apart well enough to steer a diffusion model; the tiny text tower is trained with exactly
this file.

    logits = exp(logit_scale) <image, text> / (|image| |text|);   loss = (CE over rows + CE over
    columns) / 2

Try: batches in which each scene has a twin with one attribute changed; without them colour alone
wins the game. Weakness: whatever the batch does not force apart stays together ("circle" and
"square" of equal colour); so the twins.
"""

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.models.image_encoder import CLIPImage
from minidiff.models.text import CLIPText


class CLIP(nn.Module):
    """Both towers and the learned temperature. The text
    tower needs a `project_dim`, equal to the image tower's.
    """

    def __init__(self, text: CLIPText, image: CLIPImage):
        super().__init__()
        dims = [
            None if p is None else p.out_features
            for p in (text.text_projection, image.visual_projection)
        ]
        if dims[0] != dims[1]:
            raise ValueError(
                f"towers project to {dims} (text, image); build both with the same project_dim"
            )
        self.text = text
        self.image = image
        self.logit_scale = nn.Parameter(torch.tensor(log(1 / 0.07)))

    def embed_text(self, ids: Tensor) -> Tensor:
        """Unit vectors (b e) of framed ids (b n)."""
        return F.normalize(self.text.pooled(self.text(ids), ids), dim=-1)

    def embed_image(self, image: Tensor) -> Tensor:
        """Unit vectors (b e) of pictures (b 3 h w) in [-1, 1]."""
        return F.normalize(self.image(image), dim=-1)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        """Logits (pictures, captions); the temperature
        is kept below 100, as in the paper's section 2.5.
        """
        return (
            self.logit_scale.exp().clamp(max=100.0)
            * self.embed_image(image)
            @ self.embed_text(ids).T
        )


def contrastive_loss(logits: Tensor) -> Tensor:
    """Mean of the two cross-entropies of a square of logits whose diagonal holds the true pairs."""
    if logits.dim() != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; expected a square, one caption per picture"
        )
    here = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, here) + F.cross_entropy(logits.T, here)) / 2
