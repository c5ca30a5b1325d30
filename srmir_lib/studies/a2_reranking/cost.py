"""What ranking a pool again costs against sampling anew and asking a reward model, in multiply-adds and in seconds.

The counts of a layer and the clock are those of `a5_cost.limits`; a policy's adapter is not counted. Whose states are
read decides everything, so each row says it: those of the present policy have to be made after every update, those of a
frozen model can be kept.
"""

from collections.abc import Mapping, Sequence

from datasets import Dataset

from srmir_lib.data.margins import distinct_texts
from srmir_lib.evaluation.sentences import joined
from srmir_lib.policies.callbacks import answer_ids
from srmir_lib.policies.groups import pay_groups, sample_groups
from srmir_lib.policies.reward import RewardFunction
from srmir_lib.reward_models.readouts import ReadOuts
from srmir_lib.settings.cost import Shape
from srmir_lib.studies.a2_reranking.rounds import flat, pool_scores
from srmir_lib.studies.a5_cost.limits import Load, layer_work, race, ratio, shape_of, shared_work

CLAIMED = 300.0
"""About so many times less computation than sampling is what Deng et al. 2025 report."""

ROWS = {
    "rerank_vs_sampling_cold": "the present policy's, read for this once",
    "rerank_vs_sampling_kept": "the start's, kept: of a policy that was trained since, they are out of date",
    "rerank_vs_sampling_amortised": "the present policy's, read in every round, from the second on those of the "
    "labelled pairs too; sampling the pool is counted once",
}
"""Row of metrics.json -> whose states are read."""


def reading_work(shape: Shape, prompts: Sequence[int], answers: Sequence[int]) -> float:
    """Multiply-adds of one forward over each prompt with its answer, tokens (N,), (N,), without a head."""
    texts = zip(prompts, answers, strict=True)
    return float(sum(shape.layers * layer_work(shape, asked + said) for asked, said in texts))


def sampling_work(shape: Shape, prompts: Sequence[int], answers: Sequence[int], size: int) -> float:
    """Multiply-adds of sampling answers with kept keys and values: a prompt once for its `size` answers, then each
    answer's tokens, and the head's logits for every token."""
    work = sum(shape.layers * layer_work(shape, asked) for asked in prompts[::size])
    for asked, said in zip(prompts, answers, strict=True):
        work += shape.layers * layer_work(shape, said, seen=asked) + said * shape.hidden * shape.vocab
    return float(work)


def scoring_work(
    shape: Shape, prompts: Sequence[int], answers: Sequence[int], size: int, probe: int, rank: int
) -> float:
    """Multiply-adds of a routed reward: a trunk reads each prompt once and its answers, one probe of `probe` tokens and
    an adapter of `rank` asks of each. What the router reads is not counted: it remembers prompts."""
    mean = sum(answers) / len(answers)
    loads = (Load(asked, mean, size, 1, probe) for asked in prompts[::size])
    return float(sum(shared_work(load, shape, rank, asked=1) for load in loads))


def readout_work(shape: Shape, layers: int, count: int) -> float:
    """Multiply-adds of `hybrid_reward` on `count` answers' states: L H for the read-outs, L L for their gate."""
    return float(count * (layers * shape.hidden + layers**2))


def cost_rows(
    seconds: Mapping[str, Sequence[float]], work: Mapping[str, float], rounds: int
) -> dict[str, dict[str, float | str]]:
    """The rows of `ROWS`: how many times less re-ranking takes than sampling and scoring, in seconds (median and
    quartiles over the rounds of the race) and in multiply-adds, and whose states are read.

    `seconds` (name -> rounds of `race`) and `work` of: sampling, scoring (both of one round's answers), reading (their
    states by the present policy, and read-outs), kept (read-outs alone), learning (the states of labelled pairs, from
    which read-outs learn on). `rounds`: of a training, for the row amortised: so many times sampling and scoring,
    against sampling once, reading so often and learning on once less.
    """
    online = [drawn + scored for drawn, scored in zip(seconds["sampling"], seconds["scoring"], strict=True)]
    parts = zip(seconds["sampling"], seconds["reading"], seconds["learning"], strict=True)
    once = [(drawn + rounds * read + (rounds - 1) * learned) / rounds for drawn, read, learned in parts]
    timed = {"cold": seconds["reading"], "kept": seconds["kept"], "amortised": once}
    counted = {"cold": work["reading"], "kept": work["kept"]}
    counted["amortised"] = work["reading"] + (work["sampling"] + (rounds - 1) * work["learning"]) / rounds
    rows = {}
    for name, states in ROWS.items():
        kind, value = name.rpartition("_")[2], ratio(online, timed[name.rpartition("_")[2]])
        flops = (work["sampling"] + work["scoring"]) / counted[kind]
        rows[name] = {"seconds": value.median, "low": value.low, "high": value.high, "FLOPs": flops, "states": states}
    return rows


def measure(
    policy,
    tokenizer,
    pool: Dataset,
    labelled: Dataset,
    reward: RewardFunction,
    readouts: ReadOuts,
    rounds: int,
    **sampling,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds (name -> `rounds` of `race`) and multiply-adds of one round on the same `pool`, by the names that
    `cost_rows` knows: sampling as many answers from the `policy` again, scoring them by a routed `reward` of probes on
    a trunk, reading the pool by the policy's own states, the read-outs alone on states that were kept, and reading the
    answers of `labelled` pairs, each once, from which they learn on; that learning itself is not counted."""
    size, shape, model = len(pool[0]["responses"]), shape_of(policy.config), policy.get_base_model()
    asked, said = answer_ids(policy, tokenizer, *flat(pool))
    lengths = list(map(len, asked)), list(map(len, said))
    texts = distinct_texts(labelled["prompt"], labelled["chosen"], labelled["rejected"])[:2]
    of_pairs = [list(map(len, ids)) for ids in answer_ids(policy, tokenizer, *texts)]
    states = readouts.read(model, tokenizer, *flat(pool))
    probes, columns = reward.models.scorer.probes, {"prompt": pool["prompt"][:]}
    runners = {
        "sampling": lambda: sample_groups(policy, tokenizer, pool["prompt"], size, **sampling),
        "scoring": lambda: pay_groups(reward, columns, pool["responses"]),
        "reading": lambda: pool_scores(model, tokenizer, pool, readouts),
        "kept": lambda: readouts.score(states),
        "learning": lambda: readouts.read(model, tokenizer, *texts),
    }
    read_out = readout_work(shape, len(readouts.layers), len(states))
    work = {
        "sampling": sampling_work(shape, *lengths, size),
        "scoring": scoring_work(shape, *lengths, size, probes.width, probes.settings.rank),
        "reading": reading_work(shape, *lengths) + read_out,
        "kept": read_out,
        "learning": reading_work(shape, *of_pairs),
    }
    return race(runners, rounds, str(policy.device)), work


def about_cost(rows: Mapping[str, Mapping[str, float | str]]) -> str:
    """Where a factor such as `CLAIMED` can come from, by the rows of `cost_rows`."""
    said = [f"{name.rpartition('_')[2]} {row['seconds']:.1f} (FLOPs {row['FLOPs']:.1f})" for name, row in rows.items()]
    reach = [name.rpartition("_")[2] for name, row in rows.items() if max(row["seconds"], row["FLOPs"]) >= CLAIMED]
    only = "kept states alone, and these are not the present policy's" if reach == ["kept"] else joined(reach)
    dear = [name.rpartition("_")[2] for name, row in rows.items() if row["FLOPs"] < 1]
    text = f"Times less than sampling and scoring: {'; '.join(said)}. About {CLAIMED:.0f} times is reached by: {only}."
    return f"{text} More FLOPs than sampling and scoring take: {joined(dear)}." if dear else text
