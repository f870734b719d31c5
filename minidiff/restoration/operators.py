"""Linear operators: what a picture lost, as y = A x + noise,
and all that can be said about A without a dense matrix.

The shared library of DDRM (Kawar et al. 2022, 2201.11793), DDNM (Wang et al. 2022, 2212.00490) and
RePaint. Every A is kept as its singular value decomposition,

    A = U diag(s) V^T        A^T = V diag(s) U^T        A^+ = V diag(1/s where s > 0, else 0) U^T

where V and U are not matrices but functions. Rows of V^T with s > 0 are what y tells about the
picture; rows with s = 0 (the null space) are what a model must invent. `project` gives any picture
the right answer in the first part:

    x  ->  x - A^+ (A x - y)          then A x = y, and nothing else of x has changed

Two bases are enough. Averaging (of a block's pixels, of three colours) is a reflection that turns
the constant vector into the first axis, a Householder mirror: orthogonal, its own inverse, two
sums. A periodic blur is diagonal in the Hartley basis, the real twin of Fourier's, its own inverse
too.

Try: `superres(4).pinv(y)` is the picture of blocks; `blur(32, 32, 2.)` with `cut=0`, and watch 1/s
blow up the rounding.

Weakness: operators do not chain freely. Hole first and averaging after is linear too, but the
averages then have other weights, and undoing the two in turn is no pseudo-inverse (A A^+ A differs
from A; published code does it, and its results miss y). So `lossy` builds the combinations that
share one basis: average, then grey, then holes in the COARSE picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minidiff.core.denoise import noise
from minidiff.pipe.masks import check_mask, paste, to_latent_mask
from minidiff.pipe.pipe import Pipe

Task = Literal["inpaint", "sr2", "sr4", "grey", "blur"]


@dataclass(frozen=True)
class LinearOp:
    """x: pictures or latents (b c H W); y: measurements;
    the coefficients V^T x have a shape of their own.

    `s` (float64) broadcasts against the coefficients. Ut lays y out like them, with anything where
    s is 0.
    """

    A: Callable[[Tensor], Tensor]
    U: Callable[[Tensor], Tensor]
    Ut: Callable[[Tensor], Tensor]
    V: Callable[[Tensor], Tensor]
    Vt: Callable[[Tensor], Tensor]
    s: Tensor

    def singular(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(s, 1/s where s > 0 else 0) in the dtype and on the device of `like`."""
        inverse = torch.where(self.s > 0, 1 / self.s.clamp_min(1e-300), 0.0)
        # cast first: MPS has no float64
        return tuple(v.to(like.dtype).to(like.device) for v in (self.s, inverse))

    def At(self, y: Tensor) -> Tensor:
        """The transpose: <A x, y> = <x, A^T y>."""
        return self.V(self.singular(y)[0] * self.Ut(y))

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y: of all x that explain y best, the smallest."""
        return self.V(self.singular(y)[1] * self.Ut(y))

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The picture nearest to x with A x = y (for a y that A can produce)."""
        return x - self.pinv(self.A(x) - y)  # DDNM's correction


def mirror(x: Tensor, dim: int) -> Tensor:
    """Reflect axis `dim` (n long) so that (1, .., 1)/sqrt(n)
    becomes (1, 0, .., 0): orthogonal and its own inverse.

    Entry 0 of the result is the sum over the axis / sqrt(n); the others hold what the mean does not
    tell.
    """
    n = x.shape[dim]
    if n == 1:
        return x
    v = torch.full((n,), -(n**-0.5), dtype=x.dtype, device=x.device)
    v[0] += 1  # first axis minus constant
    v = v.view(-1, *[1] * (x.ndim - 1 - dim))
    return x - v * (v * x).sum(dim, keepdim=True) / (1 - n**-0.5)  # x - 2 v <v, x> / <v, v>


def lossy(mask: Tensor | None = None, factor: int = 1, grey: bool = False) -> LinearOp:
    """Pictures averaged over blocks of factor x factor,
    then made grey, then with holes: each optional.

    mask: (1 or b, 1, h, w) on the COARSE grid, 1 where the measurement is missing. V mirrors blocks
    and colours, U = I. ValueError: a factor below 1, a mask that is not 0 and 1, or (when applied)
    not of the measurement's size.
    """
    if factor < 1:
        raise ValueError(f"factor={factor}: 1 keeps the size, 2 halves it, 4 ...")
    if mask is not None and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            "a mask of 0 (known) and 1 (missing) was expected; threshold it: (mask > .5).float()"
        )
    kept = torch.ones(1, 1, 1, 1) if mask is None else 1 - mask

    def A(x):
        y = F.avg_pool2d(x, factor) if factor > 1 else x
        y = y.mean(1, keepdim=True) if grey else y  # b 1|c h w
        if mask is not None and mask.shape[-2:] != y.shape[-2:]:
            raise ValueError(
                f"the mask is {tuple(mask.shape[-2:])}, the measurement {tuple(y.shape[-2:])}: "
                "holes are made in the coarse picture, since averages over a hole have no such A^+"
            )
        return kept.to(y) * y

    def Vt(x):
        c = mirror(rearrange(x, "b c (h f) (w g) -> b c (f g) h w", f=factor, g=factor), 2)
        return mirror(c, 1) if grey else c

    def V(c):
        c = mirror(mirror(c, 1) if grey else c, 2)
        return rearrange(c, "b c (f g) h w -> b c (h f) (w g)", f=factor, g=factor)

    def Ut(y):  # zeros where s is 0
        return F.pad(y[:, :, None], (0, 0, 0, 0, 0, factor**2 - 1, 0, 2 if grey else 0))

    s = torch.zeros(3 if grey else 1, factor**2, 1, 1, dtype=torch.float64)
    # mean = first entry / sqrt(n)
    s[: 1 if grey else None, 0] = 1 / factor * (3**-0.5 if grey else 1)
    s = s * kept.double().cpu()[:, :, None]  # 1|b 1|3 k 1|h 1|w
    return LinearOp(A, lambda c: c[:, : 1 if grey else None, 0], Ut, V, Vt, s)


def hole(mask: Tensor) -> LinearOp:
    """Pictures or latents without what lies under the mask (1 = missing)."""
    return lossy(mask=mask)


def superres(factor: int) -> LinearOp:
    """Means of blocks of factor x factor."""
    return lossy(factor=factor)


def grey() -> LinearOp:
    """The mean of the three colours."""
    return lossy(grey=True)


def hartley(x: Tensor) -> Tensor:
    """Re - Im of the Fourier transform of the last two axes: real, orthogonal, its own inverse."""
    f = torch.fft.fft2(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, norm="ortho")
    return (f.real - f.imag).to(x.dtype)


def blur(height: int, width: int, sigma: float = 1.0, cut: float = 0.02) -> LinearOp:
    """Gaussian blur of `sigma` pixels on a picture that repeats itself beyond its borders.

    What passes by less than `cut` does not pass at all, in A itself, so that A^+ never divides by
    nearly nothing. ValueError: a sigma or cut out of range.
    """
    if not sigma > 0 or not 0 <= cut < 1:
        raise ValueError(
            f"sigma={sigma}, cut={cut}: expected a width above 0 and a cut in 0..1 (0 keeps "
            "everything)"
        )

    def pass_band(n):
        i = torch.arange(n, dtype=torch.float64)
        # wrapped round
        k = sum(torch.exp(-((i + r * n) ** 2) / (2 * sigma**2)) for r in range(-4, 4))
        return torch.fft.fft(k / k.sum()).real.clamp(0, 1)  # even: real; Gaussian: positive

    s = pass_band(height)[:, None] * pass_band(width)  # h w
    s = torch.where(s >= cut, s, 0.0)
    return LinearOp(
        lambda x: hartley(s.to(x.dtype).to(x.device) * hartley(x)),
        hartley,
        hartley,
        hartley,
        hartley,
        s,
    )


def task_operator(task: Task, size: tuple[int, int], mask: Tensor | None = None) -> LinearOp:
    """The operator of a name: inpaint (needs a mask of that
    size), sr2, sr4, grey, blur (1 pixel in 32). ValueError.
    """
    if (task == "inpaint") != (mask is not None):
        raise ValueError(f"task {task!r} {'needs a' if mask is None else 'takes no'} mask")
    if mask is not None and (mask.ndim != 4 or mask.shape[-2:] != size):
        raise ValueError(
            f"mask is {tuple(mask.shape)}, the picture {size[0]} x {size[1]}: expected (1 or b, 1, "
            "H, W)"
        )
    made = {
        "inpaint": lambda: hole(mask),
        "sr2": lambda: superres(2),
        "sr4": lambda: superres(4),
        "grey": grey,
        "blur": lambda: blur(*size, sigma=size[1] / 32),
    }
    if task not in made:
        raise ValueError(f"task {task!r} is unknown; choose one of: {', '.join(made)}")
    return made[task]()


# ---- from a picture and the name of a task to a measurement, and back ----------------------------


def measure(
    pipe: Pipe,
    image: Tensor,
    task: Task,
    mask: Tensor | None = None,
    degraded: bool = False,
    sigma_y: float = 0.0,
    seed: int = 0,
) -> tuple[LinearOp, Tensor]:
    """(operator, y) of pictures (b 3 H W), in the space
    the model works in. ValueError: what does not fit.

    With `degraded` the pictures are what was measured, at full size (blocks, grey, a hole of any
    content), and get no noise. Block means, grey and holes measure a second time what they measured
    the first; a blur is taken as it is.
    """
    if pipe.vae is not None and task != "inpaint":
        raise ValueError(
            f"task {task!r} acts on pixels, and {pipe.name or 'this model'} works on latents, "
            "where it is not linear; use a pixel model such as tiny-pixel, or task inpaint"
        )
    x = pipe.encode(image)  # pixel models: the picture
    op = task_operator(
        task, x.shape[-2:], None if mask is None else to_latent_mask(check_mask(mask, image), pipe)
    )
    if degraded:
        return op, x if task == "blur" else op.A(x)
    y = op.A(x)
    # not the sampler's noise
    # not the noise that sampling starts from; a generator reads 32 bits of a seed
    return op, y + sigma_y * noise(y.shape, seed + 2**31, y.device, y.dtype)


def finish(
    pipe: Pipe, x: Tensor, image: Tensor, op: LinearOp, y: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Rows [measured, restored] as pictures (2b 3 H W). Of a
    pixel model x is the picture, uncut (a cut would lose y).
    """
    if pipe.vae is not None:  # a hole in latents
        x = paste(pipe.decode(x), image, mask)
        seen = image * (1 - mask)
    else:
        seen = y if y.shape == x.shape else op.pinv(y)
    return torch.cat([seen.to(x), x])
