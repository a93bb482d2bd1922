"""Train the tiny demo model on a CPU: first its tokenizer, then its weights.

Every row of a batch is one conversation that fills the row, so the model sees what it will
see in use: a dialogue from its first token on. Needs torch and transformers.
"""

import argparse
import os
from pathlib import Path

from scripts.demo_model.needs import require


def _options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="Train the tiny demo model on a CPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--init", type=Path, help="folder of a model to go on from")
    parser.add_argument("--seconds", type=float, default=1500, help="training time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--length", type=int, default=320, help="tokens in a row")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in a batch")
    parser.add_argument("--context", type=int, default=1024, help="longest context")
    parser.add_argument("--vocab", type=int, default=768)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument("--flat", type=float, default=0.3, help="share of the time at full rate")
    parser.add_argument("--save-every", type=int, default=0, help="steps between saves")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    return parser.parse_args()


def main() -> None:
    """Read the options, train, save."""
    args = _options()
    require("torch", "transformers")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by transformers when it is imported
    from scripts.demo_model.training import Plan, run  # noqa: PLC0415 - only after the lines above

    run(Plan(**vars(args)))


if __name__ == "__main__":
    main()
