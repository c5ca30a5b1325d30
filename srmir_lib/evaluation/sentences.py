"""Results as sentences, made from the numbers: they turn round when the numbers do.

Every function takes numbers by policy and returns one text for a cell to print. Names come in the order they are given.
"""

from collections.abc import Mapping, Sequence

from srmir_lib.statistics import Interval


def joined(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; nobody: `none`. Names that hold a comma are told apart by semicolons."""
    names = list(names)
    comma = "; " if any("," in name for name in names) else ", "
    return comma.join(names[:-1]) + " and " * (len(names) > 1) + names[-1] if names else "none"


def signed(value: float, decimals: int = 3) -> str:
    """A number with its sign."""
    return f"{value:+.{decimals}f}"


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


SPEAKS = {"for": "for the claim", "against": "against the claim", "open": "for neither side"}


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
