"""Bias audit: questions on which a model follows either the text or a stereotype.

Each scenario of `bias.yaml` describes two people and an action of one of them. A scenario becomes
six items: the text leaves the person open (the correct answer is that it is unknown), names the
person of the stereotype, or names the other one; each with either person mentioned first.
A preference for a group, for the first mention or for the stereotype does not raise the score.

The ambiguous and disambiguated conditions follow BBQ (arXiv:2110.08193); the scenarios are new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_kit.evaluation.items import parse
from lora_kit.evaluation.items.row import ChoiceRow, slug

UNKNOWN = (
    "Nobody knows who {deed}.",
    "It is not known who {deed}.",
    "It is not said who {deed}.",
    "It is unclear who {deed}.",
    "The text does not say who {deed}.",
    "There is no telling who {deed}.",
)
"""Phrasings of the unknown answer; a scenario uses one, so that its items are comparable."""


@dataclass(frozen=True)
class BiasScenario:
    """Two people of different groups, a setting, and an action of one of them."""

    name: str
    axis: str
    expected: str
    """Group to which a stereotype attributes the action."""
    other: str
    """The other group."""
    setting: str
    """Sentence with the placeholder `{pair}` for the two people."""
    deed: str
    """Action: a verb in the past tense with its objects."""
    unknown: str
    """Answer that the person is unknown."""

    def statement(self, group: str) -> str:
        """Return the sentence that attributes the action to a group's person.

        The sentence is used in the text and as an answer.
        """
        # Answers are complete sentences: a small model avoids repeating the words for a person.
        return f"The {group} {self.deed}."

    @property
    def id(self) -> str:
        """Identifier, `axis/name`."""
        return f"{slug(self.axis)}/{self.name}"

    def rows(self) -> Iterator[ChoiceRow]:
        """Yield the six items of the scenario."""
        orders = {
            "expected-first": (self.expected, self.other),
            "expected-last": (self.other, self.expected),
        }
        for order, (first, last) in orders.items():
            pair = f"{_indefinite(first)} and {_indefinite(last)}"
            setting = self.setting.replace("{pair}", pair)
            # Not capitalize(), which lower-cases the rest, such as the I of Italian.
            setting = setting[0].upper() + setting[1:]
            for direction, doer in (
                ("none", None),
                ("stereotype", self.expected),
                ("counter", self.other),
            ):
                fact = f"One of them {self.deed}." if doer is None else self.statement(doer)
                right = self.unknown if doer is None else fact
                answers = (self.statement(self.expected), self.statement(self.other), self.unknown)
                yield ChoiceRow.draw(
                    f"{self.id}/{direction}/{order}",
                    f"{setting} {fact} Who {self.deed}?",
                    right,
                    [answer for answer in answers if answer != right],
                    {
                        "axis": self.axis,
                        "condition": "ambiguous" if doer is None else "disambiguated",
                        "direction": direction,
                    },
                    self.id,
                )


def bias_rows() -> list[ChoiceRow]:
    """Return all items, in the order of `bias.yaml`; the same on every machine."""
    return [row for scenario in bias_scenarios() for row in scenario.rows()]


def bias_scenarios() -> list[BiasScenario]:
    """Return all scenarios, in the order of `bias.yaml`."""
    scenarios: list[BiasScenario] = []
    for value in parse.read_item_file("bias.yaml"):
        scenarios += parse_bias_scenarios(value, len(scenarios))
    return scenarios


def parse_bias_scenarios(value: Mapping[str, object], number: int) -> list[BiasScenario]:
    """Parse the scenarios of two groups from a YAML mapping.

    Args:
        value: YAML mapping of an axis.
        number: number of scenarios before these; picks the phrasing of the unknown answer.

    Raises:
        ValueError: if a field is missing or has the wrong type, or `expected` is not a group.
    """
    axis = parse.require_text(value.get("axis"), "axis")
    parse.require_known_keys(value, {"axis", "groups", "situations"}, f"axis {axis!r}")
    groups = parse.require_texts(value.get("groups"), f"{axis}.groups")
    if len(set(groups)) != 2 or len(groups) != 2:
        raise ValueError(
            f"{axis}.groups: must be two groups (got {list(groups)}). Fix: name two that differ"
        )
    scenarios: list[BiasScenario] = []
    for name, part in parse.require_mapping(value.get("situations"), f"{axis}.situations").items():
        where = f"{axis}.{name}"
        fields = parse.require_mapping(part, where)
        parse.require_known_keys(fields, {"setting", "deed", "expected"}, where)
        setting = parse.require_text(fields.get("setting"), f"{where}.setting")
        expected = parse.require_text(fields.get("expected"), f"{where}.expected")
        deed = parse.require_text(fields.get("deed"), f"{where}.deed")
        if not setting.startswith("{pair} "):
            raise ValueError(
                f"{where}.setting: must begin with {{pair}} (got {setting!r}). Fix: put {{pair}} "
                "first"
            )
        if expected not in groups:
            raise ValueError(
                f"{where}.expected: not a group (got {expected!r}). Fix: use one of {list(groups)}"
            )
        scenarios.append(
            BiasScenario(
                name=parse.require_text(name, f"a name in {axis}"),
                axis=axis,
                expected=expected,
                other=groups[1 - groups.index(expected)],
                setting=setting,
                deed=deed,
                unknown=UNKNOWN[(number + len(scenarios)) % len(UNKNOWN)].replace("{deed}", deed),
            )
        )
    return scenarios


def _indefinite(group: str) -> str:
    return f"{'an' if group[0].lower() in 'aeiou' else 'a'} {group}"
