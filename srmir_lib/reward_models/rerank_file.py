"""`srmir rerank`: pools of answers (JSON lines, a JSON list, parquet, a `datasets` folder) become preference pairs, by
what a causal model's own states say of the answers (Deng et al. 2025, arXiv 2503.10093: RBRM).

All rows are checked before anything slow is imported, and those that are too long for the model are found before the
first is read by it. The output takes its place when it is finished, and not before.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from srmir_lib.conversations import as_answer, as_chat, conversation_ids, shortened, text_of, too_long
from srmir_lib.data import jsonl
from srmir_lib.data.preferences import as_pair
from srmir_lib.errors import InputError, numbered

COLUMNS = ("chosen", "rejected", "score_chosen", "score_rejected", "confidence")

HELD_OUT = 5
"""One prompt in so many is held out, to say how good the read-outs are, before they are learned from all."""


def rerank_file(
    model: str,
    source: str,
    target: str,
    labelled: str = "",
    readouts: str = "",
    save_readouts: str = "",
    layer: int | None = None,
    pooling: str | None = None,
    device: str = "auto",
    too_long: str = "refuse",
    prefix: str = "",
    chunk: int = 32,
) -> str:
    """Write the rows of `source` (`prompt`, `responses`: two answers at least, texts or messages) to `target`, JSON
    lines, with five more columns behind `prefix`; returns a line on what was done.

    `chosen` and `rejected` are the answers of the highest and the lowest score (`papers.rbrm.best_and_worst`),
    `score_chosen` and `score_rejected` those scores, `confidence` how far to trust the pair (`pair_confidence`). The
    scores are read off the states of `model` by read-outs that are learned from up to a thousand pairs of the file
    `labelled`, of any form that `preferences.as_pair` reads, or that were kept in the folder `readouts`. `layer`: one
    hidden state (as in `embeddings.embed`), None: all; `pooling`: last (the default) or mean; with `readouts` both are
    theirs. `too_long`: a pool or pair with an answer that is longer than the model reads is an `InputError` (refuse),
    is read without the middle of its longest messages (cut), or is left out (skip). `chunk`: pools in memory at a time.
    """
    started, names = time.monotonic(), [prefix + name for name in COLUMNS]
    if bool(labelled) == bool(readouts):
        raise InputError("read-outs: give pairs to learn them from (--labelled) or a folder of them (--readouts)")
    if readouts and (layer is not None or pooling is not None):
        raise InputError(f"{readouts}: says itself which layers it reads, and how; leave --layer and --pooling out")
    if save_readouts and readouts:
        raise InputError(f"{save_readouts}: nothing is learned, so nothing need be kept; leave --save-readouts out")

    def rows() -> Iterator[tuple[int, dict]]:
        return jsonl.read_rows(source, lambda row: jsonl.taken(names, row) or jsonl.problem_of(row, _pool))

    total = jsonl.count_rows(rows(), source)
    count = jsonl.count_rows(_labelled(labelled), labelled) if labelled else 0
    jsonl.check_output(target, [source, model, labelled or readouts])
    if save_readouts:
        if Path(save_readouts).exists():
            raise InputError(f"{save_readouts}: exists already and would be lost; name a new folder")
        jsonl.check_output(save_readouts, [source, model, labelled, target])

    from srmir_lib.models.loading import fingerprint
    from srmir_lib.reward_models.readouts import MOST_PAIRS, ReadOuts

    kept = ReadOuts.load(readouts, fingerprint(model)) if readouts else None
    reader = _PoolModel(model, device)
    chunks = jsonl.chunked(rows(), chunk)
    long = jsonl.long_rows(source, chunks, lambda part: reader.problems(map(_pool, part)), too_long, "pool")
    learned = "read-outs as kept"
    if labelled:
        examples = [(number, as_pair(row)) for number, row in jsonl.spread(_labelled(labelled), count, MOST_PAIRS)]
        kept, learned = reader.learn(examples, labelled, too_long, fingerprint(model), layer, pooling or "last")
    told = []

    def columns(found: Sequence[dict], cut: Sequence[bool]) -> list[dict]:
        pools = [_pool(row) for row in found]
        pairs = reader.pairs(kept, [reader.cut(own) if longer else own for own, longer in zip(pools, cut, strict=True)])
        told.append((sum(len(answers) for _, answers in pools), sum(pair[-1] for pair in pairs)))
        new = [
            (row["responses"][best], row["responses"][worst], *map(jsonl.seven_digits, said))
            for row, (best, worst, *said) in zip(found, pairs, strict=True)
        ]
        return [dict(zip(names, own, strict=True)) for own in new]

    done = jsonl.write_rows(source, target, rows(), columns, long, too_long, total, "re-ranked", chunk)
    if save_readouts:
        kept.save(save_readouts)
    answers, sure = map(sum, zip(*told, strict=True))
    return (
        f"{target}: {done} pairs of {answers} answers{jsonl.counted(len(long), too_long)}, mean confidence "
        f"{sure / done:.2f}; {learned}, {time.monotonic() - started:.0f} s"
    )


class _PoolModel:
    """The frozen causal model whose states are read."""

    def __init__(self, model: str, device: str):
        from srmir_lib.models.kinds import language_problem
        from srmir_lib.models.loading import config_of, load_trunk, precision

        if problem := language_problem(config_of(model)):
            raise InputError(f"{model}: {problem}")
        self.trunk, self.tokenizer = load_trunk(model, device, precision(model, device))

    def problems(self, pools) -> list[str]:
        """Of each (prompt, answers) what makes one of them longer than the model reads, or ""."""
        from srmir_lib.models.embeddings import longest_text

        prompts, answers, owners = _flat(pools)
        with numbered(owners):
            ids = conversation_ids(self.tokenizer, prompts, answers)
        wrong, limit = [""] * (owners[-1] + 1), longest_text(self.trunk)
        for owner, tokens in zip(owners, ids, strict=True):
            wrong[owner] = wrong[owner] or too_long(len(tokens), limit)
        return wrong

    def cut(self, pool: tuple) -> tuple:
        """A prompt and its answers, of which one is too long behind it, so short that the model reads them."""
        prompt, answers = pool
        parts = shortened([prompt, *answers], lambda parts: not any(self.problems([(parts[0], parts[1:])])))
        return parts[0], parts[1:]

    def learn(
        self,
        examples: Sequence[tuple[int, dict]],
        source: str,
        policy: str,
        model: str,
        layer: int | None,
        pooling: str,
    ) -> tuple:
        """(read-outs learned from labelled pairs, what to say of them); `policy` for pairs that are too long, `model`:
        the fingerprint of this one."""
        from srmir_lib.models.embeddings import check_layer, embed_layers
        from srmir_lib.reward_models.readouts import all_layers, learn_readouts

        layers = all_layers(self.trunk)
        if layer is not None:
            check_layer(self.trunk, layer, pooling)
            layers = [layer % (len(layers) + 1)]
        pools = [(number, (pair["prompt"], [pair["chosen"], pair["rejected"]])) for number, pair in examples]
        long = jsonl.long_rows(source, [tuple(zip(*pools, strict=True))], self.problems, policy, "labelled pair")
        pools = [(n, self.cut(pool) if n in long else pool) for n, pool in pools if policy != "skip" or n not in long]
        numbers, pools = zip(*pools, strict=True)
        prompts, answers, owners = _flat(pools)
        with jsonl.rows_of(source, numbers), numbered(owners):
            states = embed_layers(self.trunk, self.tokenizer, prompts, answers, layers, pooling)
        chosen, rejected = states[::2], states[1::2]
        how = layers, pooling, model
        seen, held = _held_out([str(prompt) for prompt, _ in pools])
        said = f"read-outs of {len(pools)} labelled pairs"
        if held:
            trial = learn_readouts(chosen[seen], rejected[seen], *how)
            right = (trial.score(chosen[held]) > trial.score(rejected[held])).double().mean().item()
            said += f" (learned without {len(held)} of them, right on {right:.0%} of those)"
        return learn_readouts(chosen, rejected, *how), said

    def pairs(self, readouts, pools: Sequence[tuple]) -> list[tuple]:
        """Of each (prompt, answers): (which is best, which is worst, both scores, confidence)."""
        from srmir_lib.papers.rbrm import best_and_worst, pair_confidence

        places = [_different(answers) for _, answers in pools]
        some = [(prompt, [answers[at] for at in own]) for (prompt, answers), own in zip(pools, places, strict=True)]
        prompts, answers, owners = _flat(some)
        with numbered(owners):
            scores = readouts.score(readouts.read(self.trunk, self.tokenizer, prompts, answers))
        pairs = []
        for row, (own, part) in enumerate(zip(places, scores.split([len(own) for own in places]), strict=True)):
            with numbered([row]):
                best, worst = best_and_worst(part.unsqueeze(0))
            sure = pair_confidence(part[best], part[worst])
            pairs.append((own[best], own[worst], part[best].item(), part[worst].item(), sure.item()))
        return pairs


def _labelled(source: str) -> Iterator[tuple[int, dict]]:
    """(row number, row) of a file of labelled pairs, checked."""
    return jsonl.read_rows(source, lambda row: jsonl.problem_of(row, as_pair))


def _held_out(prompts: Sequence[str]) -> tuple[list[int], list[int]]:
    """(rows to learn from, rows held out): all rows of one different prompt in `HELD_OUT`; none of too few prompts."""
    order = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompts))}
    held = [row for row, prompt in enumerate(prompts) if order[prompt] % HELD_OUT == HELD_OUT - 1]
    return sorted({*range(len(prompts))} - {*held}), held


def _flat(pools) -> tuple[list, list, list[int]]:
    """(prompts, answers, which pool each is of) of all answers of pools."""
    rows = [(prompt, answer, at) for at, (prompt, answers) in enumerate(pools) for answer in answers]
    prompts, answers, owners = zip(*rows, strict=True)
    return list(prompts), list(answers), list(owners)


def _different(answers: Sequence) -> list[int]:
    """Where the answers stand that differ in more than the blanks around them: what stands twice is read once."""
    first: dict[str, int] = {}
    for at, answer in enumerate(answers):
        first.setdefault(text_of(answer).strip(), at)
    return list(first.values())


def _pool(row: dict) -> tuple[list[dict], list[list[dict]]]:
    """The prompt and the answers of a row, as messages; what no pair can be made of is an `InputError`."""
    if missing := [name for name in ("prompt", "responses") if name not in row]:
        raise InputError(f"lacks {', '.join(missing)}")
    prompt, given = as_chat(row["prompt"]), row["responses"]
    if not isinstance(given, list | tuple):
        raise InputError(
            f"responses is {'null' if given is None else f'a {type(given).__name__}'}; give a list of answers"
        )
    if len(given) < 2:
        raise InputError(f"responses holds {len(given) or 'no'} answer; a pair needs two, leave the row out")
    answers = [as_answer(answer, f"responses[{at}]") for at, answer in enumerate(given)]
    for at, answer in enumerate(answers):
        if not text_of(answer).strip():
            raise InputError(f"responses[{at}] is empty; an answer needs a word, take it out")
    if len(_different(answers)) < 2:
        raise InputError("responses are all equal; a pair needs two that differ, leave the row out")
    return prompt, answers
