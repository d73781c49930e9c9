"""How well encoders tell skills apart by words that nobody learned from: by a linear map on vectors, and by the closest phrase.

    python bench/words.py
    python bench/words.py --encoder transformer:FOLDER     # a Hugging Face encoder beside the built-in one

Trained on each humanoid skill's `train` phrases (flexrl/phrasings.py), asked for its `held_out` ones: other verbs, and typing
errors. The closest phrase is what `play.py --words` goes by. What a policy makes of them is measured by bench/skills.py
--phrasings held_out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from flexrl.tasks import SKILLS, find_task
from flexrl.text_encoders import closest, embed, find_encoder


def probe(name: str) -> dict[str, tuple[dict[str, float], list[str]]]:
    """By each way of reading: the share of held-out phrases understood, by skill, and those that were not."""
    encoder = find_encoder(name)
    skills = SKILLS["humanoid"]
    families = [find_task("humanoid", skill).words for skill in skills]

    def vectors(kind: str) -> tuple[torch.Tensor, np.ndarray, list[str]]:
        phrases = [(i, phrase) for i, family in enumerate(families) for phrase in getattr(family, kind)]
        rows = embed([phrase for _, phrase in phrases], encoder)
        return torch.tensor(rows, dtype=torch.float32), np.array([i for i, _ in phrases]), [phrase for _, phrase in phrases]

    known, which, learned = vectors("train")
    asked, truth, phrases = vectors("held_out")
    torch.manual_seed(0)
    linear = torch.nn.Linear(known.shape[1], len(skills))
    optimiser = torch.optim.AdamW(linear.parameters(), lr=0.05, weight_decay=0.01)
    for _ in range(600):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(linear(known), torch.from_numpy(which)).backward()
        optimiser.step()
    answers = {
        "a linear map": linear(asked).argmax(dim=1).numpy(),
        "the closest phrase": np.array([which[closest(phrase, learned, encoder)[0]] for phrase in phrases]),
    }
    found = {}
    for way, answer in answers.items():
        wrong = [f"{p!r} as {skills[a]}" for p, a, t in zip(phrases, answer, truth, strict=True) if a != t]
        found[way] = {skill: float(np.mean(answer[truth == i] == i)) for i, skill in enumerate(skills)}, wrong
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", action="append", default=["hashed_ngrams"])
    for name in parser.parse_args().encoder:
        for way, (shares, wrong) in probe(name).items():
            print(f"{name}, {way}: {np.mean(list(shares.values())):.0%} of held-out phrases understood")
            print("  " + ", ".join(f"{skill} {share:.0%}" for skill, share in shares.items()))
            print(f"  not: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
