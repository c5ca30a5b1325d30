"""Results as sentences, made from the numbers: they turn round when the numbers do.

Every function takes numbers by policy and returns one text for a cell to print. Names come in the order they are given.
"""

import textwrap
from collections.abc import Mapping, Sequence

from srmir_lib.statistics import Interval


def say(text: str, width: int = 110) -> None:
    """Print a text in lines of `width` characters at most, broken between words."""
    print(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False))


def joined(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; nobody: `none`. Names that hold a comma are told apart by semicolons."""
    names = list(names)
    comma = "; " if any("," in name for name in names) else ", "
    return comma.join(names[:-1]) + " and " * (len(names) > 1) + names[-1] if names else "none"


def signed(value: float) -> str:
    """A number with its sign, `+0.000` where nothing is left of it."""
    return f"{value:+.3f}".replace("-0.000", "+0.000")


def told(rows: Sequence[Mapping]) -> str:
    """Names with their differences."""
    return joined([f"{row['label']} ({signed(row['estimate'])})" for row in rows])


def ruler_of(twice: Sequence[Mapping]) -> float:
    """How far the same policy may seem to differ from itself: the farthest end of the intervals of `twice`, the rows
    (estimate, low, high) of policies evaluated again with another seed minus themselves."""
    return max(abs(row[end]) for row in twice for end in ("low", "high"))


def about_noise(twice: Sequence[Mapping], rows: Sequence[Mapping]) -> str:
    """What sampling alone does to balanced goodness, and whose difference to the control lies outside of it."""
    ruler, control = ruler_of(twice), rows[0]["control"]
    above = [row for row in rows if row["estimate"] > ruler]
    below = [row for row in rows if row["estimate"] < -ruler]
    within = [row for row in rows if row not in above and row not in below]
    return (
        f"Asked again with another seed, a policy differs from itself: {told(twice)} in balanced goodness. The ruler "
        f"of noise is the farthest end of these intervals, {ruler:.3f}. Outside of it, against {control}, lie "
        f"{told(above)} above and {told(below)} below; within it {told(within)}."
    )


def about_differences(rows: Sequence[Mapping]) -> str:
    """Who is better than the control on the same prompts, who is worse, and who cannot be told from it."""
    better, worse = [row for row in rows if row["low"] > 0], [row for row in rows if row["high"] < 0]
    alike = [row for row in rows if row not in better and row not in worse]
    return (
        f"Against {rows[0]['control']}, prompt by prompt: better {told(better)}; worse {told(worse)}; "
        f"not told apart {told(alike)}."
    )


def about_ceiling(
    goodness: Mapping[str, float], start: str, imitation: str, best: str, ceiling: float, one_draft: float
) -> str:
    """How far the policies came on the way that their model's knowledge allows.

    `goodness`: balanced goodness by policy, of at least `start`, `imitation` and `best`. `ceiling`: of acting on
    beliefs without a slip; `one_draft`: of acting on one draft, what perfect imitation reaches.
    """
    room, beyond = ceiling - goodness[start], goodness[imitation] - one_draft
    share = f"{(goodness[best] - goodness[start]) / room:.0%} of the way from {start}" if room > 0 else "no way left"
    side = "beyond" if beyond > 0 else "short of"
    return (
        f"{imitation} ends {side} what one draft tells ({goodness[imitation]:.3f} against {one_draft:.3f}). {best}, "
        f"the best learned policy, has {goodness[best]:.3f} of the {ceiling:.3f} that acting on beliefs reaches: "
        f"{share}."
    )


def about_attacks(rates: Mapping[str, Mapping[str, float]], floor: Mapping[str, float]) -> str:
    """Which attack gets through most often, and whom it hits least and most.

    `rates`: policy -> attack -> share in [0, 1], the same attacks for all; `floor`: the share of each attack's prompts
    that a policy which never slips would comply with, where it is known.
    """
    attacks = list(next(iter(rates.values())))
    mean = {attack: sum(of[attack] for of in rates.values()) / len(rates) for attack in attacks}
    worst, mildest = max(attacks, key=mean.get), min(attacks, key=mean.get)
    by = {name: of[worst] for name, of in rates.items()}
    firm, soft = min(by, key=by.get), max(by, key=by.get)
    known = f", where acting on beliefs would let {floor[worst]:.0%} through" if worst in floor else ""
    return (
        f"The attack that gets through most often is: {worst} ({mean[worst]:.0%} over the policies{known}); least "
        f"often: {mildest} ({mean[mildest]:.0%}). The former succeeds against {firm} with {by[firm]:.0%} of the "
        f"prompts, against {soft} with {by[soft]:.0%}."
    )


def about_floor(rates: Mapping[str, float], log_odds: Mapping[str, float]) -> str:
    """Whose rate of attacks is zero, and between what their log-odds of refusing still tell apart."""
    at = [name for name, rate in rates.items() if rate == 0]
    if not at:
        return "Some plain prompt gets through to every policy: no rate is at its floor."
    order = sorted(at, key=log_odds.get)
    return (
        f"No plain prompt gets through to {joined(at)}: the rate says no more about it. The log-odds of refusing do: "
        f"from {log_odds[order[0]]:.1f} nats ({order[0]}) to {log_odds[order[-1]]:.1f} ({order[-1]})."
    )


def about_separation(areas: Mapping[str, float], gains: Mapping[str, Interval], control: str) -> str:
    """Whether policies tell forbidden acts from safe ones better than the control, or only refuse more or less.

    `areas`: AUROC by policy, `control` among them; `gains`: of the others, paired against it.
    """
    said = []
    for name, (gain, low, high) in gains.items():
        if low > 0:
            what = f"better than {control}: it does not only refuse more or less, it tells apart better"
        elif high < 0:
            what = f"worse than {control}"
        else:
            what = f"not clearly otherwise than {control}: what it changes is how much it refuses"
        said.append(
            f"{name} ({areas[name]:.3f}) tells forbidden from safe acts {what} "
            f"({signed(gain)}, {signed(low)} to {signed(high)})"
        )
    return f"AUROC of {control}: {areas[control]:.3f}. " + "; ".join(said) + "."


def about_pairs(rows: Sequence[Mapping], treatment: str, control: str) -> str:
    """Who ranks which pairs better; `rows` (group, estimate, low, high): treatment minus control on the same pairs."""
    said = []
    for row in rows:
        how = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "neither clearly better nor worse"
        interval = f"{signed(row['estimate'])}, {signed(row['low'])} to {signed(row['high'])}"
        said.append(f"{row['group']} pairs {how} than {control} ({interval})")
    return f"{treatment[0].upper()}{treatment[1:]}: ranks {'; '.join(said)}."


def about_specialists(home: Interval, elsewhere: Interval, gain: Interval) -> str:
    """How often a pair is ranked rightly by the model of its category, by the others, and the difference (`at_home`);
    expected are both to be above a coin's, and home clearly the better."""
    low, high = gain.low, gain.high
    what = "better at home" if low > 0 else "worse at home" if high < 0 else "not clearly better at home"
    held = "as" if low > 0 and elsewhere.estimate > 0.5 else "not as"
    coin = "" if home.low > 0.5 else ", where it is not clearly better than a coin,"
    return (
        f"A model is right on {home.estimate:.3f} of the pairs of its own category{coin} and on "
        f"{elsewhere.estimate:.3f} of the others': pair by pair {what} ({signed(gain.estimate)}, {signed(low)} to "
        f"{signed(high)}), {held} expected."
    )


def about_coin(rows: Sequence[Mapping]) -> str:
    """Whose pair accuracy, rows (label, group, estimate, low, high), is above that of a coin, whose below it, and whose
    cannot be told from it."""
    above, below = [row for row in rows if row["low"] > 0.5], [row for row in rows if row["high"] < 0.5]
    alike = [row for row in rows if row not in above and row not in below]
    clear, worse, unclear = (
        joined([f"{r['label']} ({r['group']} pairs)" for r in part]) for part in (above, below, alike)
    )
    return f"Better than a coin: {clear}. Worse than one: {worse}. Not told from one: {unclear}."


RATES = ("auroc", "recall", "false_alarms")
"""What is known of a classifier of harm, as 01 measures it."""


def about_harm_ruled(rates: Mapping[str, float]) -> str:
    """What the `recall` and the `false_alarms` of a classifier of harm make of goodness on harmful prompts, where a
    refusal is acquitted before it is asked."""
    safe, harmful = 1 - rates["false_alarms"], 1 - rates["recall"]
    return (
        f"The referee of harm has an AUROC of {rates['auroc']:.3f}. To a harmful prompt a refusal is worth 1; of other "
        f"answers those that do no harm are worth {safe:.2f} on average, those that do {harmful:.2f}. Goodness there "
        f"moves by {1 - safe:.2f} where a policy refuses in the place of a harmless answer, and by "
        f"{safe - harmful:.2f} where a harmless answer stands in the place of a harmful one."
    )


def about_referee(rates: Mapping[str, float], unsafe: Sequence[int]) -> str:
    """How far a classifier of harm can be trusted: its `auroc`, `recall` and `false_alarms` on answers that people
    called `unsafe` or not."""
    return (
        f"The referee of harm, on {len(unsafe)} answers from which it has not learned, of which people call "
        f"{sum(unsafe)} unsafe: AUROC {rates['auroc']:.3f} (a coin: .5). At its threshold it finds "
        f"{rates['recall']:.0%} of them, and calls {rates['false_alarms']:.0%} of the others harm."
    )


def about_scales(deviations: Sequence[float], apart: float) -> str:
    """Whether the scores of reward models have scales of their own, as was expected: the widest at least `apart` times
    the narrowest."""
    width = max(deviations) / min(deviations)
    held = "the scales differ, as we expected" if width >= apart else "the scales are alike already, unexpectedly"
    return f"Raw, the widest scale is {width:.2f} times the narrowest: {held}."


CLEAR = {"better": lambda row: row["low"] > 0, "worse": lambda row: row["high"] < 0}


def expected_of(changes: Mapping, levels: Sequence[str]) -> dict:
    """What `about_objective` expects of a set that differs from the plain ones in `changes`: margins move all `levels`
    of pairs but the easy ones, nothing else moves any; PCRM's limits and centering halve the spread at least."""
    loss = changes.get("objective", "")
    tamed = loss.startswith("pcrm") or "center_rewards_coefficient" in changes
    return {"still": ["easy"] if loss == "margin" else list(levels)} | ({"at_most": 0.5} if tamed else {})


def about_objective(
    name: str, rows: Sequence[Mapping], spread: float, still: Sequence[str], at_most: float = float("inf")
) -> str:
    """What an objective did to the order of pairs and to the scale, against what was expected of it.

    `rows` (group, estimate, low, high): its accuracy minus that of the plain loss; `spread`: of its scores, in those of
    the plain loss. Expected: no clear difference on pairs of the groups `still`, and a spread of `at_most`.
    """
    named = [row | {"label": f"{row['group']} pairs"} for row in rows]
    moved = {how: [row for row in named if clear(row)] for how, clear in CLEAR.items()}
    parts = [f"{told(found)} {how} than plain" for how, found in moved.items() if found]
    order = " and ".join(parts) or "no pairs clearly better or worse than plain"
    calm = not any(row["group"] in still for found in moved.values() for row in found)
    held = "as we expected" if calm and spread <= at_most else "against our expectation"
    if at_most == float("inf") and not {row["group"] for row in rows} & {*still}:
        held = "nothing was expected of such pairs"
    return f"{name} ranks {order}; its scores spread {spread:.2f} times as far: {held}."


def about_margins(follows: Mapping[str, Mapping[str, float]]) -> str:
    """Whether Legend's margin follows harm more closely than one bit: kind of prompt -> rank correlations of `margin`
    and `bit`, of each. Expected is that it does on harmful prompts, and that it follows harm there at all."""
    said = [f"on {kind} prompts {found['margin']:.2f} against {found['bit']:.2f}" for kind, found in follows.items()]
    if harmful := follows.get("harmful"):
        held = "as" if harmful["margin"] > max(harmful["bit"], 0) else "not as"
        said[list(follows).index("harmful")] += f", {held} expected"
    return f"Margin against bit, rank correlation with the gap in harm: {'; '.join(said)}."


def about_choosing(truths: Mapping[str, Mapping[int, float]], room: float) -> str:
    """Whether what reward models pick goes on getting better with the number of answers, and how far it is from the
    best there was. `truths`: name -> n -> true goodness of the pick, `oracle` among the names; `room`: how much the
    oracle was expected to be ahead, at least."""
    *_, fewer, most = list(truths["oracle"])
    gains = {name: of[most] - of[fewer] for name, of in truths.items() if name != "oracle"}
    rising, falling = [n for n, gain in gains.items() if gain > 0], [n for n, gain in gains.items() if gain <= 0]
    best = max(gains, key=lambda name: truths[name][most])
    ahead = truths["oracle"][most] - truths[best][most]
    held = "as we expected" if not falling and ahead > room else "against our expectation"
    return (
        f"Of {most} answers the pick is on average better than of {fewer} with {joined(rising)}, and no better with "
        f"{joined(falling)}; the best of them, {best}, is {ahead:.3f} short of the oracle: {held}."
    )


def about_length(paid: Mapping[str, Mapping[str, float]], within: float) -> str:
    """What calibration for length did, by the two rows of `pay_for_length`; expected: gaps follow length less, in size,
    and the accuracy moves by less than `within`."""
    plain, taken = paid.values()
    before, after = plain["follows length"], taken["follows length"]
    moved, less = taken["accuracy"] - plain["accuracy"], abs(after) < abs(before)
    held = "as we expected" if less and abs(moved) < within else "against our expectation"
    how = "less" if less else "no less"
    return (
        f"Calibrated for length, reward gaps follow it {how} ({before:.2f} before, {after:.2f} after), and the "
        f"accuracy moves by {signed(moved)}: {held}."
    )


SPEAKS = {"for": "for the claim", "against": "against the claim", "open": "for neither side"}


def about_hardness(
    follows: Mapping[str, float], apart: Mapping[str, int], lowest: float, highest: float, near: float
) -> str:
    """Whether scales (from `lowest` to `highest`) stay within `near` of 1, and whether they are larger where prompts
    are harder; `follows`: what scales -> its rank correlation with difficulty, which has to lie outside of what chance
    gives nineteen times of twenty for as many independent values as `apart` says. Both were expected."""
    held = max(highest - 1, 1 - lowest) <= near
    within = f"{'within' if held else 'not all within'} {near} of 1, {'as' if held else 'not as'} expected"
    said = []
    for name, of in follows.items():
        chance = 1.96 / (apart[name] - 1) ** 0.5 if apart[name] > 4 else 1.0
        told = "as expected" if of > chance else "not told from chance" if of >= -chance else "not as expected"
        said.append(f"{name} {signed(of)} (chance: up to {chance:.2f}), {told}")
    return f"From {lowest:.3f} to {highest:.3f}: {within}. Rank correlation with difficulty: {'; '.join(said)}."


def about_scaling(ends: Mapping[str, tuple[float, float]]) -> str:
    """Policy -> how much more the advantages of harder prompts are scaled than those of easier ones, early and late in
    training; it was expected that they are at both ends where the scale is `alpha`, and more so than where such scales
    are dealt out at `random`, either way."""
    blind, said = ends.get("random", (0.0, 0.0)), []
    for name, (early, late) in ends.items():
        held = ""
        if name == "alpha" and min(early, late) <= 0:
            held = ", not as expected"
        elif name == "alpha":
            told_apart = early > abs(blind[0]) and late > abs(blind[1])
            held = ", as expected" if told_apart else ", not told from random"
        said.append(f"{name} {signed(early)} early and {signed(late)} late{held}")
    return f"Scale of harder minus easier prompts: {'; '.join(said)}."


def about_scaled(rows: Sequence[Mapping]) -> str:
    """`about_differences` to the control, and whether none of them can be told from it, as was expected."""
    alike = all(row["low"] <= 0 <= row["high"] for row in rows)
    return f"{about_differences(rows)} {'As' if alike else 'Not as'} expected."


def about_claim(claims: Sequence[Mapping], goodness: Mapping[str, float], name: str) -> str:
    """Which side of the claim `name` did better in this run, by the records of `claims_of_one_run`; nothing where the
    run cannot speak of it."""
    claim = next((claim for claim in claims if claim["id"] == name), None)
    if claim is None:
        return ""
    treatment, control = claim["treatment"], claim["control"]
    order = "above" if goodness[treatment] > goodness[control] else "not above"
    return (
        f"{treatment} ({goodness[treatment]:.3f}) is {order} its strongest rival, {control} ({goodness[control]:.3f}); "
        f"the interval of their difference speaks {SPEAKS[claim['this_run']]}."
    )


def about_equal_kl(rows: Sequence[Mapping]) -> str:
    """Who is best and worst after equally many updates and at equal KL, by rows of `compare_courses` that reach both;
    it was expected that the same policy leads."""
    said, best = [], []
    for key in ("goodness then", "goodness there"):
        order = sorted(rows, key=lambda row: -row[key])
        best.append(order[0]["policy"])
        said.append(f"{best[-1]} leads ({order[0][key]:.3f}), {order[-1]['policy']} is last ({order[-1][key]:.3f})")
    turned = sum(
        (one["goodness then"] - other["goodness then"]) * (one["goodness there"] - other["goodness there"]) < 0
        for at, one in enumerate(rows)
        for other in rows[:at]
    )
    held = "as we expected" if best[0] == best[1] else "against our expectation"
    updates, far, pairs = rows[0]["updates"], rows[0]["equal KL"], len(rows) * (len(rows) - 1) // 2
    return (
        f"After {updates:.0f} updates {said[0]}. At {far:.4f} nats a token, as far as all of them go, {said[1]}. "
        f"{turned} of {pairs} pairs change their order: {held}."
    )
