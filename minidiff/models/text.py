"""CLIP's text tower, and the transformer block it shares with the image tower (`image_encoder.py`).

Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762; Radford et al. 2021, "Learning
Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020 (CLIP). Rombach et
al. 2021, arXiv 2112.10752, is how its hidden states came to steer a diffusion model.

The idea: a causal transformer trained so that a caption lands near its picture. Stable Diffusion
never uses that one vector; it shows the UNet the states of ALL tokens, padding included, after the
final norm:

    h = token + position;   h += attn(LN h);   h += mlp(LN h)   for each block;   states = LN h

Stable Diffusion 1 has ViT-L's tower (12 blocks, quick GELU); Stable Diffusion 2 has OpenCLIP-H's
without its last block (23 blocks, exact GELU), which is `layer=-2` of the full tower. Names are
Hugging Face's without the prefix `text_model.`, so real weights load with an identity map.

Try: `layer=-2` on a model trained with -1 ("clip skip 2" of user interfaces), or the wrong `act`,
and compare pictures. Weakness: the mask is causal, so a word never knows what follows it ("red" in
"a red circle" has not seen the circle); attribute binding suffers (`causal=False` and
`shipped/words.py` are what our tiny model does about it). Tap `probs` to see who reads whom;
`embeds` lets an edit put its own vectors in.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minidiff.core.taps import Tap


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's cheap GELU; off by up to 0.02 from the
    exact one, which is enough to change pictures.
    """
    return x * torch.sigmoid(1.702 * x)


ACTS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def causal_mask(n: int) -> Tensor:
    """What is added to logits (.. n n), rows the queries: 0 where a token may look, -inf where the
    key comes later.
    """
    return torch.full((n, n), -torch.inf).triu(1)


class SelfAttention(nn.Module):
    """Multi-head self-attention. Probabilities are formed
    only while someone listens to the tap `probs` (b h n m).
    """

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.causal = causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.probs = Tap()

    def forward(self, x: Tensor) -> Tensor:
        q = self.q_proj(x)  # b n (h d)
        k = self.k_proj(x)
        v = self.v_proj(x)
        q, k, v = (rearrange(y, "b n (h d) -> b h n d", h=self.heads) for y in (q, k, v))
        if self.probs.fns:
            logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # b h n m
            if self.causal:
                logits = logits + causal_mask(logits.shape[-1]).to(logits)
            h = self.probs(logits.softmax(-1)) @ v  # b h n d
        else:
            h = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # b h n d
        return self.out_proj(rearrange(h, "b h n d -> b n (h d)"))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, act: str):
        super().__init__()
        if act not in ACTS:
            raise ValueError(f"act is {act!r}; expected one of {', '.join(ACTS)}")
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.act = ACTS[act]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; the tap `out` sees the residual stream after it (b n d)."""

    def __init__(self, width: int, heads: int, hidden: int, act: str, causal: bool):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.layer_norm2 = nn.LayerNorm(width)
        self.self_attn = SelfAttention(width, heads, causal)
        self.mlp = MLP(width, hidden, act)
        self.out = Tap()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))  # b n d
        return self.out(x + self.mlp(self.layer_norm2(x)))


class Encoder(nn.Module):
    """The stack of blocks. `layer`: -1 runs them all, -2 leaves out the last, and so on."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int, act: str, causal: bool):
        super().__init__()
        self.layers = nn.ModuleList(Block(width, heads, hidden, act, causal) for _ in range(layers))
        init_(self, width, layers)

    def forward(self, x: Tensor, layer: int = -1) -> Tensor:
        run = len(self.layers) + 1 + layer
        if layer >= 0 or run < 0:
            raise ValueError(
                f"layer is {layer}; expected -1 (all blocks) to {-len(self.layers) - 1} (none)"
            )
        for block in self.layers[:run]:
            x = block(x)
        return x


def init_(encoder: Encoder, width: int, layers: int) -> None:
    """CLIP's start: what writes to the residual stream
    is small in proportion to the number of writers.
    """
    write = (2 * layers * width) ** -0.5
    for block in encoder.layers:
        a = block.self_attn
        m = block.mlp
        for linear, std in (
            (a.q_proj, width**-0.5),
            (a.k_proj, width**-0.5),
            (a.v_proj, width**-0.5),
            (a.out_proj, write),
            (m.fc1, (2 * width) ** -0.5),
            (m.fc2, write),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)


class CLIPText(nn.Module):
    """Token ids -> one state per token. `project_dim` adds
    the projection of the pooled state, used to train CLIP.

    `causal=False` lets every token read the whole row, as latent diffusion's first text encoder did
    (BERT): then the noun that is named first can know where it stands. A row must then be as long
    as in training.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        layers: int,
        heads: int,
        context: int,
        *,
        mlp_ratio: int = 4,
        act: str = "quick_gelu",
        eos_id: int = 49407,
        project_dim: int | None = None,
        causal: bool = True,
    ):
        super().__init__()
        self.width = width
        self.context = context
        self.eos_id = eos_id
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(vocab_size, width),
                "position_embedding": nn.Embedding(context, width),
            }
        )
        self.encoder = Encoder(width, layers, heads, mlp_ratio * width, act, causal)
        self.final_layer_norm = nn.LayerNorm(width)
        self.text_projection = nn.Linear(width, project_dim, bias=False) if project_dim else None
        nn.init.normal_(self.embeddings["token_embedding"].weight, std=0.02)
        nn.init.normal_(self.embeddings["position_embedding"].weight, std=0.01)
        if project_dim:
            nn.init.normal_(self.text_projection.weight, std=width**-0.5)

    def token_embeds(self, ids: Tensor) -> Tensor:
        """The vectors of the tokens (b n) -> (b n d), before
        positions: change some and pass them as `embeds`.
        """
        return self.embeddings["token_embedding"](ids)

    def forward(
        self, ids: Tensor | None, *, embeds: Tensor | None = None, layer: int = -1
    ) -> Tensor:
        """States (b n d) after the final norm, of `ids` (b n)
        or of token vectors `embeds` (b n d) in their place.

        `layer=-2` leaves out the last block (its norm stays). n may be shorter than the context:
        the mask is causal.
        """
        x = self.token_embeds(ids) if embeds is None else embeds  # b n d
        if x.dim() != 3 or x.shape[1] > self.context or x.shape[2] != self.width:
            raise ValueError(
                f"token vectors are {tuple(x.shape)}; expected (b, n <= {self.context}, "
                f"{self.width})"
            )
        x = x + self.embeddings["position_embedding"].weight[: x.shape[1]]
        return self.final_layer_norm(self.encoder(x, layer))

    def pooled(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The state at the first end token (b d), projected if the tower has a projection (b e).

        First `eos_id`, not the largest id: new words of textual inversion have larger ids than the
        end token.
        """
        is_end = ids == self.eos_id  # b n
        if not is_end.any(dim=1).all():
            raise ValueError(
                f"a row of ids has no end token {self.eos_id}; were the prompts framed by this "
                "tokenizer?"
            )
        row = hidden[torch.arange(len(ids), device=ids.device), is_end.int().argmax(dim=1)]  # b d
        return row if self.text_projection is None else self.text_projection(row)
