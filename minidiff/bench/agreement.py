"""Does the order of the methods hang on how their scores are put together? Two questions to it.

    if the cube root were a mean    EditScore = T (K Bn (1/2 + Cn/2))^(1/3) against
                                    T (K + Bn + (1/2 + Cn/2)) / 3
    if the pictures were photographs    the order on PIE-Bench of the methods that both have

Each answer is Spearman's rank correlation, and says of how many methods.
"""

import numpy as np

from minidiff.evaluate.metrics import rank_correlation

LEAST = 3  # methods below which a rank correlation says nothing

# PIE-Bench, 700 photographs, Stable Diffusion 1.4: structure distance (x 1000), background PSNR
# (dB), CLIP similarity of the edited part. As the authors of ViMAEdit print them, beside their own
# method (Wang, Song, Liu, Yuan, Guan, "Vision-guided and Mask-enhanced Adaptive Denoising for
# Prompt-based Image Editing", README of their code). How each inverted its pictures is not said
# there.
# Table 1 of Ju et al. 2023 (2310.01506), where PIE-Bench comes from, has more methods.
PIE_BENCH = {
    "direct-inversion": (11.64, 27.19, 22.13),
    "masactrl": (24.47, 22.78, 21.38),
    "plug-and-play": (24.29, 22.64, 22.62),
    "pix2pix-zero": (51.13, 21.23, 21.03),
}


def mean_score(row: dict) -> float:
    """An edit's score if K, Bn and (1 + Cn) / 2 were averaged."""
    return row["T"] * (row["K"] + row["Bn"] + (1 + row["Cn"]) / 2) / 3


def places(scores: dict[str, float]) -> dict[str, int]:
    """{method: its place}, 1 for the highest score."""
    order = sorted(scores, key=lambda name: -scores[name])
    return {name: place for place, name in enumerate(order, 1)}


def mean_instead(groups: dict[str, list[dict]]) -> dict | None:
    """{"methods": n, "rho", "moved": [(method, place by EditScore, place by the mean), ...]}, those
    that move furthest first; None for too few methods.
    """
    if len(groups) < LEAST:
        return None
    ours = {name: float(np.mean([r["score"] for r in rows])) for name, rows in groups.items()}
    other = {name: float(np.mean([mean_score(r) for r in rows])) for name, rows in groups.items()}
    before = places(ours)
    after = places(other)
    moved = [(name, before[name], after[name]) for name in ours if before[name] != after[name]]
    moved.sort(key=lambda m: -abs(m[1] - m[2]))
    rho = rank_correlation([*ours.values()], [*other.values()])
    return {"methods": len(groups), "rho": rho, "moved": moved}


def with_pie_bench(lines: dict[str, dict]) -> dict | None:
    """{"methods": names, "rho": {measure: rank correlation}}: ours with the like of PIE-Bench, and
    the EditScore with the sum of its three ranks; None for too few methods.
    """
    both = [name for name in PIE_BENCH if name in lines]
    if len(both) < LEAST:
        return None
    theirs = np.array([PIE_BENCH[name] for name in both]) * (-1, 1, 1)  # of distance less is more
    structure, background, likeness = theirs.T
    ranks = theirs.argsort(0).argsort(0).sum(1)
    measures = {
        "structure distance": ([-lines[name]["D"] for name in both], structure),
        "background PSNR": ([lines[name]["B_pie"] for name in both], background),
        "CLIP similarity of the edited part": ([lines[name]["Q2"] for name in both], likeness),
        "EditScore, and the sum of their ranks": ([lines[name]["score"] for name in both], ranks),
    }
    return {
        "methods": both,
        "rho": {what: rank_correlation(a, b) for what, (a, b) in measures.items()},
    }
