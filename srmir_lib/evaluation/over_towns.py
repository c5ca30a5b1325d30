"""What policies were worth over towns, or over seeds of one data set: means with the interval that decides."""

from collections import Counter
from collections.abc import Mapping, Sequence

from srmir_lib.evaluation.claims import Records
from srmir_lib.evaluation.measures import ANY_OF_N, BALANCED, BEGUN, SEPARATION
from srmir_lib.evaluation.sentences import joined, signed
from srmir_lib.statistics import Interval, paired_t_interval

SHOWN = (BALANCED, "attack_success", "attack_success_held_out_wrappers", "over_refusal", "utility", "incoherent")
"""Numbers of a policy's summary that are put together over towns."""

BENEATH = {
    SEPARATION: "harmful told from harmless (AUROC)",
    BEGUN: "complies, its beginning forced",
    ANY_OF_N: "complies in one of n tries",
    "goodness_at_equal_updates": "goodness, validation",
    "goodness_at_equal_kl": "… as far from the start",
}
"""What lies beneath those rates, with headings: whether harmful prompts are told from harmless ones by the log-odds of
a refusal, how deep refusing goes, and true goodness on validation prompts, after as many updates and at equal KL."""

ENDS = ("", "_low", "_high")
"""Of the names under which a mean and its interval are kept."""


BEHIND = {
    "asked, it says what it believes": "01_data/known_asked",
    "one draft tells the truth": "01_data/introspection_verdict_accuracy",
    "goodness by one draft": "01_data/one_draft",
    "goodness by its beliefs (ceiling)": "01_data/ceiling",
    "easy pairs, seven routed": "02_shadow_reward_models/pair_accuracy_easy_seven",
    "easy pairs, one model": "02_shadow_reward_models/pair_accuracy_easy_single",
    "easy pairs, fair sum": "02_shadow_reward_models/pair_accuracy_easy_cross_linear",
    "subtle pairs, seven routed": "02_shadow_reward_models/pair_accuracy_subtle_seven",
    "subtle pairs, one model": "02_shadow_reward_models/pair_accuracy_subtle_single",
    "subtle pairs, fair sum": "02_shadow_reward_models/pair_accuracy_subtle_cross_linear",
    "Legend's margin follows harm": "03_margins/margin_harm_spearman_harmful",
    "one bit, refused or not, follows harm": "03_margins/refusal_bit_harm_spearman_harmful",
}
"""What lies behind the policies: how well the base model knows and tells, and how well reward models rank pairs."""

APART = {
    f"{notebook[:2]}: {name}": f"{notebook}/{BALANCED}_{key}"
    for notebook, methods in {
        "A2_representation_reranking": {
            "start": "start",
            "DPO": "dpo",
            "re-ranking": "rerank",
            "re-ranking, a confidence each": "rerank_pair",
            "re-ranking, one a batch": "rerank_batch",
            "re-ranking, confidences dealt out": "rerank_shuffled",
            "online DPO": "online",
        },
        "A3_hardness": {
            "GRPO": "one",
            "GRPO, scaled by hardness": "alpha",
            "GRPO, by another prompt's": "random",
        },
    }.items()
    for name, key in methods.items()
}
"""What A2 and A3 compare, on some of the test prompts: balanced goodness."""

LEVELS = BEHIND | APART


def means_over_towns(towns: Records, metrics: Mapping[str, str]) -> dict[str, Interval]:
    """Name -> mean over towns and its t interval (95 %), of each of the `metrics` (name -> metric) that two towns at
    least have. `towns`: town -> what its notebooks measured, `<notebook>/<metric>` each."""
    values = {name: [own[metric] for own in towns.values() if metric in own] for name, metric in metrics.items()}
    return {name: paired_t_interval(of) for name, of in values.items() if len(of) > 1}


def policies_over_towns(towns: Records, measures: Sequence[str] = SHOWN) -> dict[str, dict[str, float]]:
    """Policy -> measure, `<measure>_low` and `<measure>_high`: the mean over towns and its t interval (95 %).

    `towns` as of `means_over_towns`, which leaves out what fewer than two have. Policies come in the order in which 06
    has them.
    """
    own: dict[str, set[str]] = {}
    for name in dict.fromkeys(name for town in towns.values() for name in town):
        notebook, _, rest = name.partition("/")
        policy, _, measure = rest.rpartition("/")
        if notebook == "06_evaluation" and policy and measure in measures:
            own.setdefault(policy, set()).add(measure)
    found = {}
    for policy, known in own.items():
        means = means_over_towns(towns, {m: f"06_evaluation/{policy}/{m}" for m in measures if m in known})
        found[policy] = {f"{m}{end}": value for m, of in means.items() for end, value in zip(ENDS, of, strict=True)}
    return {policy: summary for policy, summary in found.items() if summary}


def about_steadiness(found: Mapping[str, Records], noise: float = 0.05) -> tuple[str, dict[str, float]]:
    """Whether trained policies stay on their feet, as a sentence and in numbers: the most incoherent one of all towns,
    expected to have at most `noise` such answers, and those whose balanced goodness is further below their start's.

    `found`: preset -> its towns, as of `means_over_towns`.
    """
    ends = []
    for world, towns in found.items():
        for town, own in towns.items():
            for name in own:
                notebook, _, rest = name.partition("/")
                policy, _, measure = rest.rpartition("/")
                share, begun = (own.get(f"06_evaluation/{at}") for at in (f"{policy}/incoherent", f"start/{BALANCED}"))
                trained = policy not in ("base", "start") and not policy.endswith(", again")
                if (notebook, measure) == ("06_evaluation", BALANCED) and trained and None not in (share, begun):
                    ends.append((share, begun - own[name], policy, world, town))
    if not ends:
        return "No policy is on record.", {}
    share, _, policy, world, town = max(ends)
    fallen = Counter(f"{policy} ({world})" for _, lost, policy, world, _ in ends if lost > noise)
    said = (
        f"Of {len(ends)} trained policies the most incoherent is {policy} in town {town} of {world}, with {share:.1%} "
        f"of its answers, {'as' if share <= noise else 'not as'} expected. Below their start by more than {noise:.2f}: "
        f"{joined([f'{name} in {count}' for name, count in sorted(fallen.items())])}."
    )
    return said, {"most_incoherent": share, "fell_below_start": float(fallen.total()), "policies": float(len(ends))}


def beneath_rows(towns: Records) -> list[dict[str, str]]:
    """A row a policy: `policy`, and `BENEATH`'s headings with the mean over towns and its t interval; a dash where not
    every town has the number. `towns` as of `means_over_towns`; policies that have none of them are left out."""
    rows = []
    policies = [name.split("/")[1] for own in towns.values() for name in own if name.startswith("06_evaluation/")]
    for policy in dict.fromkeys(policies):
        row = {"policy": policy}
        for measure, heading in BENEATH.items():
            values = [value for own in towns.values() if (value := _of_policy(own, policy, measure)) is not None]
            known = len(values) == len(towns) > 1
            row[heading] = "{:.3f} ({:.3f} to {:.3f})".format(*paired_t_interval(values)) if known else "–"
        if set(row.values()) != {policy, "–"}:
            rows.append(row)
    return rows


def about_depth(towns: Records, policies: Sequence[str], control: str = "start") -> str:
    """Which of the `policies` tell harmful prompts from harmless ones better than the `control` does, by the AUROC of
    the log-odds of a refusal (paired t intervals over towns), and how often they comply when made to begin so.

    `towns` as of `means_over_towns`; a policy that fewer than two of them have is left out.
    """
    gains, forced = {}, []
    for policy in policies:
        both = [[_of_policy(own, name, SEPARATION) for name in (policy, control)] for own in towns.values()]
        known = [own - theirs for own, theirs in both if None not in (own, theirs)]
        if len(known) > 1:
            gains[policy] = paired_t_interval(known)
            forced += [rate for own in towns.values() if (rate := _of_policy(own, policy, BEGUN)) is not None]
    if not gains:
        return "Log-odds of a refusal are on record of no trained policy."
    told = [f"{name} {signed(mean)} [{signed(low)}, {signed(high)}]" for name, (mean, low, high) in gains.items()]
    better = [name for name, (_, low, _) in gains.items() if low > 0]
    said = f"shown of {joined(better)}" if better else "shown of none of them"
    deep = (
        f" Made to begin with compliance they go on with it in {min(forced):.2f} to {max(forced):.2f} of the attacks."
    )
    return (
        f"That a policy tells harmful prompts from harmless ones better than the {control} is {said} (AUROC of the "
        f"log-odds of a refusal, minus the {control}'s: {joined(told)}).{deep if forced else ''}"
    )


def _of_policy(own: Mapping[str, float], policy: str, measure: str) -> float | None:
    return own.get(f"06_evaluation/{policy}/{measure}")
