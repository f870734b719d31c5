"""CLIP's image tower: a picture to one vector in the space that captions share.

Dosovitskiy et al. 2020, "An Image Is Worth 16x16 Words", arXiv 2010.11929 (ViT); Radford et al.
2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020
(CLIP).

The idea: cut the picture into patches, make each a token with one strided convolution, put a
learned class token in front and let them attend to each other. The state of the class token, normed
and projected, is the picture's vector:

    h = LN([class; patches] + position);   blocks;   vector = W LN h[0]

The block is the text tower's, without the causal mask. Names are Hugging Face's without the prefix
`vision_model.` (its spelling `pre_layrnorm` included, since published weights have it).

Try: `hidden(image, layer=-2)` for the patch states that image-prompt adapters read. Weakness: the
tower sees one square of fixed size; detail below a patch and beyond the centre crop is lost.
`preprocess` is differentiable, so guidance by CLIP can send its gradient through.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minidiff.models.text import Encoder

# of CLIP's training pictures in [0, 1]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class PatchEmbeddings(nn.Module):
    """[class; patches] + position."""

    def __init__(self, grid: int, patch: int, width: int):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(grid**2 + 1, width)
        nn.init.normal_(self.position_embedding.weight, std=width**-0.5)

    def forward(self, image: Tensor) -> Tensor:
        patches = rearrange(self.patch_embedding(image), "b d h w -> b (h w) d")
        first = self.class_embedding.to(patches).expand(len(patches), 1, -1)  # b 1 d
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight  # b 1+n d


class CLIPImage(nn.Module):
    """Picture (b 3 h w) in [-1, 1], any size -> vector (b project_dim), not normalised."""

    def __init__(
        self,
        image_size: int,
        patch: int,
        width: int,
        layers: int,
        heads: int,
        project_dim: int,
        act: str = "quick_gelu",
        *,
        mlp_ratio: int = 4,
    ):
        super().__init__()
        if image_size % patch:
            raise ValueError(f"image size {image_size} is no multiple of the patch size {patch}")
        self.image_size = image_size
        self.embeddings = PatchEmbeddings(image_size // patch, patch, width)
        self.pre_layrnorm = nn.LayerNorm(width)
        self.encoder = Encoder(width, layers, heads, mlp_ratio * width, act, causal=False)
        self.post_layernorm = nn.LayerNorm(width)
        self.visual_projection = nn.Linear(width, project_dim, bias=False)
        nn.init.normal_(self.visual_projection.weight, std=width**-0.5)

    def preprocess(self, image: Tensor) -> Tensor:
        """[-1, 1], any size -> CLIP's input: short side to
        `image_size` (bicubic), centre crop, CLIP's mean and std.
        """
        if image.dim() != 4 or image.shape[1] != 3:
            raise ValueError(
                f"image has shape {tuple(image.shape)}; expected (b, 3, h, w) in [-1, 1]"
            )
        h, w = image.shape[-2:]
        if min(h, w) != self.image_size:
            h, w = (round(x * self.image_size / min(h, w)) for x in (h, w))
            image = F.interpolate(image, (h, w), mode="bicubic", antialias=True).clamp(-1, 1)
        top = (h - self.image_size) // 2
        left = (w - self.image_size) // 2
        image = image[..., top : top + self.image_size, left : left + self.image_size]
        mean, std = (image.new_tensor(c).view(3, 1, 1) for c in (MEAN, STD))
        return ((image + 1) / 2 - mean) / std  # b 3 s s

    def hidden(self, image: Tensor, *, layer: int = -1) -> Tensor:
        """States (b 1+n d) of class token and patches after
        the blocks; `layer=-2` leaves out the last block.
        """
        return self.encoder(self.pre_layrnorm(self.embeddings(self.preprocess(image))), layer)

    def forward(self, image: Tensor) -> Tensor:
        return self.visual_projection(self.post_layernorm(self.hidden(image)[:, 0]))  # b e
