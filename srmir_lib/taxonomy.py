"""Categories of prompts: the seven of the default taxonomy, with a name and a colour each, and whatever data have.

The seven are the typical safety scenarios of Safety-Prompts (Sun et al. 2023), which SRMIR takes over. A category is a
key, such as "mental_health", which also names folders and metrics.
"""

from collections.abc import Iterable, Mapping

CATEGORIES: dict[str, str] = {
    "insult": "Insult",
    "unfairness": "Unfairness and Discrimination",
    "crimes": "Crimes and Illegal Activities",
    "physical_harm": "Physical Harm",
    "mental_health": "Mental Health",
    "privacy": "Privacy and Property",
    "ethics": "Ethics and Morality",
}


UNKNOWN = "unknown"
"""What a router says when no category claims a prompt, and the label of a pair of none: it is no category itself."""

ALL = "all"
"""The category of a single reward model for everything, and of pairs that have no column for it."""


# Okabe-Ito hues, told apart by colour-blind readers; the order also falls in lightness, so grey print works.
COLOURS: dict[str, str] = {
    "insult": "#E69F00",
    "unfairness": "#56B4E9",
    "crimes": "#D55E00",
    "physical_harm": "#CC79A7",
    "mental_health": "#009E73",
    "privacy": "#0072B2",
    "ethics": "#5D4A8A",
    UNKNOWN: "#8C8C8C",
}


def ordered(names: Iterable[str]) -> list[str]:
    """Each once: those of the taxonomy in its order, then the others by name."""
    names = set(names)
    return [name for name in CATEGORIES if name in names] + sorted(names - CATEGORIES.keys())


def full_name(key: str) -> str:
    """What readers see of a category: its name in the taxonomy; else the key, with underscores as spaces."""
    return CATEGORIES.get(key, key.replace("_", " "))


def first_of_each(rows: Iterable[Mapping], count: int, column: str = "gold_category") -> list[Mapping]:
    """The first `count` rows of every category that stands in `column`, in their order."""
    seen: dict[str, int] = {}
    chosen = []
    for row in rows:
        seen[row[column]] = seen.get(row[column], 0) + 1
        chosen += [row] if seen[row[column]] <= count else []
    return chosen
