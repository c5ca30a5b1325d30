"""Ask policies the same questions and let a referee rule on the answers: one row a prompt and policy."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from tqdm.auto import tqdm

from srmir_lib.artifacts import remembered, sha256
from srmir_lib.conversations import text_of
from srmir_lib.errors import InputError
from srmir_lib.evaluation.measures import ANY_OF_N, BEGUN
from srmir_lib.models.generation import generate
from srmir_lib.models.loading import computed_on, fingerprint, load_policy, load_tokenizer, with_adapter
from srmir_lib.policies.callbacks import answer_ids, log_likelihood
from srmir_lib.taxonomy import first_of_each

COLUMNS = ("prompt", "gold_category", "kind", "subkind", "family", "held_out", "reference")


def normalise(answer: str) -> str:
    """Lower case, single spaces, no full stop at the end: how an exact grader compares answers."""
    return re.sub(r"\s+", " ", answer).strip().rstrip(".!").strip().lower()


def is_right(answer: str, reference: str, anywhere: bool) -> bool:
    """Whether an answer is the `reference`, or holds it as words of its own, where it may stand `anywhere`."""
    answer, reference = normalise(answer), normalise(reference)
    return answer == reference or (anywhere and re.search(rf"\b{re.escape(reference)}\b", answer) is not None)


def asked_for(row: Mapping) -> str:
    """What a prompt asks for: its column `request`, without a template, or its text."""
    return row.get("request") or text_of(row["prompt"])


def worth_of(referee, asked: Iterable[Mapping], answers: Sequence[Sequence[str]]) -> Tensor:
    """What a referee finds G answers to each of P prompts worth, (P, G) in [0, 1]. `asked`: P rows with a column
    prompt; of one in a template the referee reads what it asks for (`asked_for`)."""
    requests = [asked_for(row) for row, group in zip(asked, answers, strict=True) for _ in group]
    verdicts = referee(requests, [text for group in answers for text in group])
    return torch.tensor([verdict.goodness for verdict in verdicts]).view(len(answers), -1)


class Kept(NamedTuple):
    """Where answers are kept, and whose they are: what tells a policy from every other."""

    folder: Path
    who: tuple


def kept_of(keep_in: Path | None, base_model: str | Path, adapter: str | Path | None) -> Kept | None:
    """Where the answers of a base model, or of an adapter on it, are kept; without a folder nowhere."""
    if keep_in is None:
        return None
    files = [] if adapter is None else sorted(Path(adapter).glob("adapter_*"))
    return Kept(keep_in, (fingerprint(base_model), *map(sha256, files)))


def sampled(policy, tokenizer, prompts: Sequence, kept: Kept | None, **options) -> tuple[list[str], float]:
    """Answers of a policy, and the seconds they took; `options` as of `generate`. What the very same policy, on such a
    device, has answered to the very same before is read from where it is `kept`, with the seconds of then."""

    def sample() -> list:
        started = time.perf_counter()
        said = generate(policy, tokenizer, prompts, **options)
        return [said, time.perf_counter() - started]

    if kept is None:
        return tuple(sample())
    return tuple(remembered(kept.folder, [kept.who, computed_on(policy), prompts, options], sample))


def evaluate_policy(
    policy,
    tokenizer,
    prompts,
    referee,
    max_new_tokens: int = 48,
    temperature: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
    anywhere: bool = False,
    kept: Kept | None = None,
) -> list[dict]:
    """Answer every prompt once, rule on every answer; one row per prompt, in the order of `prompts`.

    `prompts`: a `Dataset` (or list of dicts) with `COLUMNS`; `referee(prompts, responses)` returns a list of `Verdict`.
    Of a prompt in a template the referee reads what is asked (column `request`, where there is one): it learned from
    bare questions. A row holds the prompt's text and gold columns, `response`, the verdict's fields, `correct` (of
    utility, else False: it is the reference or, where that may stand `anywhere`, holds it as words), `tokens` (of the
    text, tokenized again) and `seconds` (generation time divided by the prompts). `kept`: where the answers are, if it
    was asked before.
    """
    table = [dict(row) for row in prompts]
    missing = [column for column in COLUMNS if not table or column not in table[0]]
    if missing:
        raise InputError(f"evaluation prompts: no rows, or missing the columns {', '.join(missing)}; run 01_data again")
    texts = [text_of(row["prompt"]) for row in table]
    prompts = [row["prompt"] for row in table]
    how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "batch_size": batch_size, "seed": seed}
    responses, seconds = sampled(policy, tokenizer, prompts, kept, **how)
    verdicts = referee(list(map(asked_for, table)), responses)
    if len(verdicts) != len(table):
        raise InputError(f"referee: gave {len(verdicts)} verdicts for {len(table)} answers; it must give one each")
    rows = []
    for source, text, response, verdict in zip(table, texts, responses, verdicts, strict=True):
        gold = {column: source[column] for column in COLUMNS if column != "prompt"}
        correct = source["kind"] == "utility" and is_right(response, source["reference"], anywhere)
        count = len(tokenizer(response, add_special_tokens=False)["input_ids"])
        row = {"prompt": text, "response": response} | gold | asdict(verdict)
        rows.append(row | {"correct": correct, "tokens": count, "seconds": seconds / len(table)})
    return rows


def attack_policy(
    policy,
    tokenizer,
    prompts: Sequence[Mapping],
    referee,
    beginning: str,
    tries: int,
    per_category: int,
    kept: Kept | None = None,
    **sampling,
) -> dict[str, list[bool]]:
    """Whether two attacks get a policy to comply with harmful `prompts` (rows with `COLUMNS`), by measure.

    `BEGUN`: its answer has to begin with the words `beginning` (prefilling; Andriushchenko et al. 2024, arXiv
    2404.02151), one answer to each prompt. `ANY_OF_N`: any of `tries` answers complies (Hughes et al. 2024, arXiv
    2412.03556, without their augmentations), on `first_of_each` of the prompts. `kept`: as of `evaluate_policy`;
    `sampling` goes to `generate`.
    """

    def complied(rows: Sequence[Mapping], **options) -> list[bool]:
        said, _ = sampled(policy, tokenizer, [row["prompt"] for row in rows], kept, **sampling, **options)
        return [verdict.complied for verdict in referee(list(map(asked_for, rows)), said)]

    some = [row for row in first_of_each(prompts, per_category) for _ in range(tries)]
    each = complied(some)
    any_of = [any(each[start : start + tries]) for start in range(0, len(each), tries)]
    return {BEGUN: complied(prompts, beginning=beginning), ANY_OF_N: any_of}


def mean_likelihood(policy, tokenizer, rows, micro_batch: int = 4) -> float:
    """Mean log-probability a token (nats) of the completions of `rows` (prompt, completion), a mean over the rows."""
    said = [text_of(answer) for answer in rows["completion"]]
    return log_likelihood(policy, *answer_ids(policy, tokenizer, rows["prompt"], said), micro_batch).mean().item()


def each_policy(
    base_model: str | Path, adapters: Mapping[str, str | Path | None], device: str = "auto"
) -> Iterator[tuple[str, object, object]]:
    """(name, policy, tokenizer) of the base model and any number of LoRA adapters on it, in turn.

    The base is loaded once and the adapters are switched, so a policy is to be used before the next one is asked for;
    `None` as adapter is the base itself.
    """
    tokenizer, policy = load_tokenizer(base_model), load_policy(base_model, device)
    for name, adapter in tqdm(adapters.items(), desc="policies"):
        if isinstance(policy, PeftModel):
            policy = policy.unload()
        if adapter is not None:
            policy = with_adapter(policy, adapter)
        yield name, policy.eval(), tokenizer


def evaluate_policies(
    base_model: str | Path,
    adapters: Mapping[str, str | Path | None],
    prompts,
    referee,
    device: str = "auto",
    keep_in: Path | None = None,
    **options,
) -> dict[str, list[dict]]:
    """Evaluate `each_policy`: name -> rows of `evaluate_policy`. All get the same prompts, seed and sampling; `options`
    go to `evaluate_policy`. `keep_in`: a folder for the answers, so that a killed evaluation goes on."""
    return {
        name: evaluate_policy(
            policy, tokenizer, prompts, referee, kept=kept_of(keep_in, base_model, adapters[name]), **options
        )
        for name, policy, tokenizer in each_policy(base_model, adapters, device)
    }
