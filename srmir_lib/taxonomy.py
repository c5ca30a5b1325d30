"""The seven harm categories: names, keys, and one colour each, used everywhere.

The seven are the typical safety scenarios of Safety-Prompts (Sun et al. 2023), which SRMIR takes over.
"""

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
"""What a router says when no category claims a prompt."""

ALL = "all"
"""The category of a single reward model for everything."""


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
