"""Score the tiny demo model through a real engine, greedy, by exact match.

The prompts are fresh random samples of the generator (another seed than in training). Small
spaces such as sums are all in the training data; names and words made up of random syllables
are not.
"""

import argparse
import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass

from scripts.demo_model.cases import CASES, Case, CaseMaker, resume_case
from scripts.demo_model.engines import Engine, deltas, llama_cpp, openai_server, reply

SEED = 987_654_321


@dataclass(frozen=True, slots=True)
class Sample:
    """How much to ask: cases of each kind, cuts of each answer, wrong answers to show, seed."""

    count: int
    cuts: int
    show: int
    seed: int


def _print_line(line: str, wrong: list[str], show: int) -> None:
    """A line of the table, and some wrong answers below it."""
    print("\n".join([line, *wrong[:show]]), flush=True)


def _score_kind(engine: Engine, kind: str, make: CaseMaker, sample: Sample) -> int:
    """Print the score of one kind of case and return how many were right."""
    rng, start = random.Random(f"{sample.seed} {kind}"), time.perf_counter()
    wrong: list[str] = []
    for _ in range(sample.count):
        case = make(rng, kind)
        got = reply(engine, case)
        if got != case.answer:
            wrong.append(
                f"    {case.messages[-1]['content'][:90]!r}: {got[:110]!r} "
                f"and not {case.answer[:110]!r}"
            )
    right = sample.count - len(wrong)
    milliseconds = (time.perf_counter() - start) / sample.count * 1e3
    line = f"{kind:22} {right:4}/{sample.count} = {right / sample.count:6.1%}"
    _print_line(f"{line}  {milliseconds:5.0f} ms each", wrong, sample.show)
    return right


def score(engine: Engine, sample: Sample) -> Counter[str]:
    """Print the exact matches of each kind, and return `right` and `all` over all kinds."""
    total: Counter[str] = Counter()
    for kind, make in CASES.items():
        total.update(right=_score_kind(engine, kind, make, sample), all=sample.count)
    share = total["right"] / total["all"]
    print(f"{'all':22} {total['right']:4}/{total['all']} = {share:6.1%}")
    return total


def _cut_places(pieces: list[str], *, any_cut: bool) -> list[int]:
    """Where an answer may be cut: at the ends of its pieces, or at any character."""
    length = sum(map(len, pieces))
    if any_cut:
        return list(range(1, length))
    ends = set(itertools.accumulate(map(len, pieces)))
    return sorted(end for end in ends if 1 <= end < length)


def _show_cut(case: Case, whole: str, cut: int, got: str) -> str:
    """What came after a cut, and what should have come."""
    before, after = whole[max(0, cut - 30) : cut], whole[cut : cut + 60]
    return f"    {case.kind} {before!r} | {got[:60]!r} and not {after!r}"


def score_resume(engine: Engine, sample: Sample, *, any_cut: bool) -> None:
    """Cut greedy answers, between streamed pieces or anywhere, and let the engine go on.

    The two parts must be the same text as the answer in one go.
    """
    rng, tried = random.Random(sample.seed), 0
    wrong: list[str] = []
    for _ in range(sample.count):
        case = resume_case(rng)
        pieces = deltas(engine, case)
        whole, places = "".join(pieces), _cut_places(pieces, any_cut=any_cut)
        for cut in sorted(rng.sample(places, min(sample.cuts, len(places)))):
            got = reply(engine, case, whole[:cut])
            tried += 1
            if got != whole[cut:]:
                wrong.append(_show_cut(case, whole, cut, got))
    name, right = "resume at any cut" if any_cut else "resume between pieces", tried - len(wrong)
    line = f"{name:22} {right:4}/{tried} = {right / max(tried, 1):6.1%}"
    _print_line(line, wrong, sample.show)


def main() -> None:
    """Read the options and print the scores."""
    parser = argparse.ArgumentParser(description="Score the tiny demo model, greedy.")
    parser.add_argument("target", help="GGUF file or URL of a server")
    parser.add_argument("--model", default="tiny", help="model name for a server")
    parser.add_argument("--count", type=int, default=100, help="cases of each kind")
    parser.add_argument("--cuts", type=int, default=8, help="cuts of each answer")
    parser.add_argument("--show", type=int, default=3, help="wrong answers to show of each kind")
    parser.add_argument("--seed", type=int, default=SEED, help="another seed, other cases")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    engine = (
        openai_server(args.target, args.model)
        if args.target.startswith("http")
        else llama_cpp(args.target, args.threads)
    )
    sample = Sample(args.count, args.cuts, args.show, args.seed)
    score(engine, sample)
    score_resume(engine, sample, any_cut=False)
    score_resume(engine, sample, any_cut=True)


if __name__ == "__main__":
    main()
