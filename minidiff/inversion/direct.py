"""Direct inversion and two more ways to edit a given picture with guidance, without optimisation.

Direct inversion: Xuan Ju, Ailing Zeng, Yuxuan Bian, Shaoteng Liu, Qiang Xu, 2023, arXiv 2310.01506.
Negative-prompt inversion: Daiki Miyake, Akihiro Iohara, Yu Saito, Toshiyuki Tanaka, 2023,
arXiv 2305.16807.

An inverted picture z*_T .. z*_0 comes back only without guidance. With it, the source row of an
edit leaves its path, and what the edit borrows from it is wrong. Null-text inversion (null_text.py)
bends the path back by learning; here nothing is learned. Rows [source, edit], and D the guided move
from t to s:

    negative-prompt   compare with the source's own words instead of "": in the source row guidance
                      cancels
    direct            d = z*_s - D(z_t, source);    source: D + d = z*_s exactly,    edit: D
    closed form       the same, and edit: D + share d
                      (share 0 is direct inversion, 1 the ideal null-text inversion)

Why "closed form": the null prediction that null-text inversion looks for is known, (eps* - scale
eps_cond) / (1 - scale), where eps* is what leads to z*_s. A move is linear in it, so changing the
null of both rows by as much adds d to both.

Try: the same prompt twice. With share=1 the edit is the autoencoder's copy; with share=0 it drifts
like any guided replay.

Weakness: an exact source row says nothing yet about the edit row; direct inversion leaves that to
the shared attention. `share` carries the correction over. The tutorial has reconstruction, edit and
cost of all of them in one table.
"""

from torch import Tensor

from minidiff.editing.prompt_to_prompt import prompt_to_prompt
from minidiff.inversion.ddim import Inverted, invert
from minidiff.pipe.pipe import Pipe


def edit_each(
    pipe: Pipe, inverted: Inverted, source: str | list[str], target: str | list[str], **knobs
) -> Tensor:
    """Prompt-to-prompt on every picture of an inversion; returns the edits (b 3 H W). knobs: those
    of prompt_to_prompt.
    """
    b = len(inverted.states[0])
    sources, targets = ([p] * b if isinstance(p, str) else p for p in (source, target))
    if not len(sources) == len(targets) == b:
        raise ValueError(
            f"{b} picture(s) with {len(sources)} source and {len(targets)} target prompts: give "
            "one each, or "
            "one for all"
        )
    # rows: [sources, edits]
    return prompt_to_prompt(pipe, sources, targets, inverted=inverted, **knobs)[b:]


def negative_prompt(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    cross: float = 0.3,
    self_: float = 0.9,
    steps: int = 50,
    scale: float = 3.0,
    progress: bool = False,
    **knobs,
) -> Tensor:
    """Prompt-to-prompt on pictures `image` (b 3 H W), guided away from `source` instead of from "";
    returns (b 3 H W).

    cross   share of the steps in which cross-attention is the source's
    self_   the same for self-attention

    More knobs: those of `prompt_to_prompt`. Identical prompts give the DDIM round trip at scale 1,
    whatever `scale` is.
    """
    states = invert(pipe, image, source, steps=steps, progress=progress)
    away = pipe.embed(source).expand(len(image))  # instead of the empty prompt
    return edit_each(
        pipe,
        Inverted(states, [away] * steps),
        source,
        target,
        cross=cross,
        self_=self_,
        steps=steps,
        scale=scale,
        progress=progress,
        **knobs,
    )


def direct_inversion(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    share: float = 0.0,
    cross: float = 0.3,
    self_: float = 0.9,
    steps: int = 50,
    scale: float = 3.0,
    progress: bool = False,
    **knobs,
) -> Tensor:
    """Prompt-to-prompt on pictures `image` (b 3 H W), each source row put back on its inversion;
    returns (b 3 H W).

    share   of the source row's correction that the edit gets too, 0..1: 0 direct inversion, 1 the
            closed form
    cross   share of the steps in which cross-attention is the source's
    self_   the same for self-attention

    More knobs: those of `prompt_to_prompt`. Identical prompts give the autoencoder's copy with
    share=1, a guided replay with share=0. ValueError: a share outside 0..1, unequal numbers of
    pictures and prompts.
    """
    if not 0 <= share <= 1:
        raise ValueError(
            f"share={share} is outside 0..1: 0 corrects the source row alone, 1 the edit as much"
        )
    states = invert(pipe, image, source, steps=steps, progress=progress)
    return edit_each(
        pipe,
        Inverted(states, share=share),
        source,
        target,
        cross=cross,
        self_=self_,
        steps=steps,
        scale=scale,
        progress=progress,
        **knobs,
    )
