"""A judge on sets of known order, which `monitor_ladder.py RUN --data FOLDER --out SETS` leaves as .npy files.

    python benchmarks/vision_ladder.py SETS --data FOLDER                                  # the statistical judge
    python benchmarks/vision_ladder.py SETS --data FOLDER --model NAME --send-images       # a vision-language model

The second wants a key in ANTHROPIC_API_KEY, or --base-url and, where the server asks for one, --key-variable. It prints
an opinion a set and a ranking. Answers are kept in SETS/judge, so an interrupted call goes on where it stopped.
Never run against a real vision model so far.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from thalweg.core.rng import generator
from thalweg.monitor.vision.judge import VisionJudge
from thalweg.monitor.vision.settings import VisionSettings
from thalweg.monitor.vision.statistical import StatisticalJudge

FIRST, HELD_OUT = 2000, 1200  # the rows of the official test digits that monitor_ladder.py holds out


def main() -> None:
    """Ask about each set, then rank them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--client")
    parser.add_argument("--base-url")
    parser.add_argument("--key-variable")
    parser.add_argument("--send-images", action="store_true")
    parser.add_argument("--max-cost", type=float, default=20.0)
    parser.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"), default=(10.0, 50.0))
    parser.add_argument("--sheets", type=int, default=2)
    args = parser.parse_args()
    stored = np.load(args.data / "mnist.npz")
    test = torch.from_numpy(stored["x_test"]).float()[:, None] / 255
    rows = FIRST + torch.randperm(len(test) - FIRST, generator=generator(0, "rows"))[:HELD_OUT]
    real, labels = test[rows], torch.from_numpy(stored["y_test"])[rows]
    sets = {path.stem: torch.from_numpy(np.load(path)) for path in sorted(args.sets.glob("*.npy"))}
    judge = (
        StatisticalJudge()
        if args.model is None
        else VisionJudge(settings(args), args.sets / "judge", other=real[labels == 3])
    )
    for name, x in sets.items():
        opinion = judge.compare(x, real)
        wanted = ("reliable", "verdict", "quality", "preferred", "flip_rate", "p_value", "cost", "sentence")
        print(json.dumps({"set": name, **opinion.model_dump(include=set(wanted))}, ensure_ascii=False))
    ranking = judge.rank(sets, real)
    for row in ranking.strengths:
        print(json.dumps({k: v if isinstance(v, str) else round(v, 2) for k, v in row.model_dump().items()}))
    print(
        json.dumps(
            {
                "reliable": ranking.reliable,
                "flip_rate": ranking.flip_rate,
                "cost": ranking.cost,
                "problem": ranking.problem,
            }
        )
    )


def settings(args: argparse.Namespace) -> VisionSettings:
    """The model that is asked, and what it may cost."""
    return VisionSettings.of(
        client=args.client or ("openai" if args.base_url else None),
        model=args.model,
        base_url=args.base_url,
        key_variable=args.key_variable,
        send_images=args.send_images,
        max_cost=args.max_cost,
        max_calls=2000,
        price_input=args.price[0],
        price_output=args.price[1],
        sheets=args.sheets,
    )


if __name__ == "__main__":
    main()
