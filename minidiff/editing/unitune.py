"""UniTune: text-driven image editing by fine tuning on a single image.

Dani Valevski, Matan Kalman, Yossi Matias, Yaniv Leviathan, 2022, arXiv 2210.09477.

Show the network one picture a few dozen times, always under the same word, one that means nothing
yet. Then ask for that word together with what is wanted, strongly guided, from the noised picture
on. The word holds what the noise destroyed.

    tune     theta' = argmin E_{t,n} |eps(z_t, t, "<new1>") - n|^2    all weights, few updates
    sample   x_t0 = alpha_t0 z + sigma_t0 n,    then with theta' and "<new1> + target" down to 0

Try: `updates` 0 (SDEdit), 20, 40, 160; strength 1, where only the tuned word knows the picture; a
high `scale`, for the words against the picture.

Weakness: three numbers to balance, updates, strength and scale, and too many updates make the
network deaf to the target. The default stops early, and the tutorial shows the curve. All that is
tuned is put back after every picture. (Keys and values of cross-attention alone, as some ports do,
learn the word only where it stands alone: in a sentence it is lost.)

The tiny vocabulary has two words no caption ever used; the first is taken. Other vocabularies spell
"<new1>" in pieces, in an order no caption has either.
"""

import torch
from torch import Tensor

from minidiff.editing.sdedit import sdedit
from minidiff.pipe.checks import door, needs_text, prompt_each
from minidiff.pipe.pipe import Pipe
from minidiff.train.finetune import fit_picture, in_float32, tuned


@door
def unitune(
    pipe: Pipe,
    image: Tensor,
    target: str,
    *,
    updates: int = 40,
    strength: float = 0.7,
    lr: float = 5e-4,
    rare: str = "<new1>",
    batch: int = 8,
    steps: int = 50,
    scale: float = 4.0,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Edit pictures `image` (b 3 H W) in [-1, 1] towards
    `target`; returns (b 3 H W). Each picture is tuned alone.

    updates   of the weights, for each picture; 0 is SDEdit with the prompt "rare target"
    strength  share of the steps that is run from the noised picture; at 1 only the tuned word
              remembers it
    lr        learning rate of Adam
    rare      the word the picture is learned under; it should mean nothing yet
    batch     noise levels seen by each update

    ValueError: a strength outside 0..1, a model without text, unequal numbers of pictures and
    prompts.
    """
    needs_text(pipe, "UniTune")
    pipe.timesteps(steps, strength)  # refused before any work
    targets = prompt_each(target, len(image), "target")
    out = []
    for i, prompt in enumerate(targets):
        with in_float32(pipe), tuned(pipe.net) as weights:
            fit_picture(
                pipe,
                pipe.encode(image[i : i + 1]),
                pipe.embed(rare).text,
                weights,
                updates=updates,
                lr=lr,
                batch=batch,
                seed=seed + i,
                progress=progress,
            )
            out.append(
                sdedit(
                    pipe,
                    image[i : i + 1],
                    f"{rare} {prompt}",
                    strength=strength,
                    steps=steps,
                    scale=scale,
                    seed=seed + i,
                    progress=progress,
                )
            )
    return torch.cat(out).to(pipe.dtype)
