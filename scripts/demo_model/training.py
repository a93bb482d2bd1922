"""The tokenizer, the Llama and the training loop; all that needs torch and transformers."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the name that all of torch's documents use
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.demo_model.chat_template import TEMPLATE
from scripts.demo_model.generate import texts
from scripts.demo_model.rows import END, PROMPT_WEIGHT, Rows

PAD = "<|endoftext|>"
SPECIAL = [PAD, "<|im_start|>", END]
TOKENIZER_DIALOGUES = 20_000  # more of them no longer change the merges
LONG_FROM, LONG_EVERY = 0.5, 5  # from half of the run on, each fifth batch fills the context
MUON_LR, ADAM_LR, WARM_STEPS, LAST_LR = 0.02, 3e-3, 40, 0.01

Loss = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The options of a run, named as on the command line.

    `seconds` is training time without compilation; `length`, `tokens` and `context` are counts
    of tokens; `rate` is a factor on the learning rates; `flat` is the share of the time before
    they fall; `save_every` is a number of steps, 0 for never.
    """

    out: Path
    init: Path | None
    seconds: float
    threads: int
    length: int
    tokens: int
    context: int
    vocab: int
    seed: int
    rate: float
    flat: float
    save_every: int
    compile: bool


def build_tokenizer(vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with single digits (SmolLM's pre-tokenizer)."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(texts(random.Random(1), TOKENIZER_DIALOGUES), trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw, eos_token=END, pad_token=PAD, model_max_length=context
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast, context: int) -> LlamaForCausalLM:
    """A Llama of about 1.3 M parameters, with heads of a size that every engine supports."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_rows(tokenizer: PreTrainedTokenizerFast, seed: int) -> Rows:
    """The training data of this tokenizer."""
    encode = tokenizer.backend_tokenizer.encode
    return Rows(lambda text: encode(text).ids, tokenizer.pad_token_id, seed)


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the embedding and the norms."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and "embed" not in name
        (matrices if inner else others).append(parameter)
    made = [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.0),
        torch.optim.AdamW(others, lr=ADAM_LR, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["top"] = group["lr"]
    return made


def _set_rate(made: list[torch.optim.Optimizer], step: int, done: float, plan: Plan) -> None:
    """Warm up, stay, then fall in a line; `done` is the share of the time used."""
    flat = plan.flat
    fall = plan.rate * (1.0 if done < flat else max(LAST_LR, (1 - done) / (1 - flat)))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * min(1.0, (step + 1) / WARM_STEPS) * fall


def _loss_function(model: LlamaForCausalLM, *, compiled: bool) -> Loss:
    """Weighted cross entropy, and the plain one of the answers for the log."""

    def loss(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(ids[:, :-1], use_cache=False).logits
        target, weight = ids[:, 1:].flatten(), weights[:, 1:].flatten()
        each = F.cross_entropy(logits.float().flatten(0, 1), target, reduction="none")
        ours = (weight > PROMPT_WEIGHT).float()
        return (each * weight).sum() / weight.sum(), (each.detach() * ours).sum() / ours.sum()

    return torch.compile(loss, dynamic=False) if compiled else loss


class Training:
    """One run: the model, its data, and how far it has come."""

    def __init__(self, model: LlamaForCausalLM, rows: Rows, plan: Plan) -> None:
        self._model = model
        self._rows = rows
        self._plan = plan
        self._optimizers = _optimizers(model)
        self._loss = _loss_function(model, compiled=plan.compile)
        self._seen: set[int] = set()
        self._average: float | None = None
        self._seconds_used = 0.0
        self._step = 0
        self._tokens = 0

    def run(self) -> None:
        """Train until the time is used up; the first batch of a length compiles and is free."""
        while self._seconds_used < self._plan.seconds:
            start = time.perf_counter()
            length = self._train_step()
            if length in self._seen:
                self._seconds_used += time.perf_counter() - start
            self._seen.add(length)
            self._report()
            if self._plan.save_every and self._step % self._plan.save_every == 0:
                save(self._model, self._plan.out)
        print(
            f"done: {self._step} steps, {self._seconds_used:.0f} s, "
            f"{self._tokens / 1e6:.2f} M tokens, answer loss {self._average:.4f}"
        )

    def _train_step(self) -> int:
        """One batch; returns the length of its rows."""
        plan, done = self._plan, self._seconds_used / self._plan.seconds
        long = done > LONG_FROM and self._step % LONG_EVERY == 0
        length = plan.context if long else plan.length
        _set_rate(self._optimizers, self._step, done, plan)
        id_rows, weight_rows = self._rows.batch(max(1, plan.tokens // length), length)
        ids, weights = torch.tensor(id_rows), torch.tensor(weight_rows)
        with torch.autocast("cpu", torch.bfloat16):
            total, answers = self._loss(ids, weights)
        torch.autograd.backward(total)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        value = answers.item()
        self._average = value if self._average is None else 0.95 * self._average + 0.05 * value
        self._step += 1
        self._tokens += ids.numel()
        return length

    def _report(self) -> None:
        """A line of progress, often at first and then each fiftieth step."""
        if self._step % 50 == 0 or self._step in (1, 5, 20):
            print(
                f"step {self._step} {self._seconds_used:.0f} s {self._tokens / 1e6:.2f} M tokens "
                f"{self._tokens / max(self._seconds_used, 1):.0f} tokens/s "
                f"answer loss {self._average:.4f}",
                flush=True,
            )


def save(model: LlamaForCausalLM, out: Path) -> None:
    """Write the weights in bf16 and leave the model in training as it is."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
    )
    copy.bfloat16().save_pretrained(out)


def run(plan: Plan) -> None:
    """Make or load tokenizer and model, train, and save both in `plan.out`."""
    torch.set_num_threads(plan.threads)
    torch.manual_seed(0)
    if plan.init:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(plan.init)
        tokenizer.save_pretrained(plan.out)
        model = LlamaForCausalLM.from_pretrained(plan.init, dtype=torch.float32)
    else:
        tokenizer = build_tokenizer(plan.vocab, plan.context)
        tokenizer.save_pretrained(plan.out)
        model = build_model(tokenizer, plan.context)
    millions = model.num_parameters() / 1e6
    print(f"{millions:.3f} M parameters, {len(tokenizer)} tokens", flush=True)
    Training(model, build_rows(tokenizer, plan.seed), plan).run()
    save(model, plan.out)
