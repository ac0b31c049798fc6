"""Regular expressions in an adapter's configuration, tried under a limit of time.

PEFT matches them with each module's name. An expression of a stranger can take longer than anybody
waits, such as `(a+)+b`, whose steps double with each further `a` of a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_kit.runtime.errors import AdapterError, LoraKitError
from lora_kit.runtime.limits import TooSlowError, within_limits

# Time for all expressions of a configuration; PEFT matches each several times.
SECONDS = 3
# Options with expressions, and the expression that PEFT makes of each.
COMPLETE = ("target_modules", "exclude_modules", "feedforward_modules")
PARTS = {
    "modules_to_save": r"(^|.*\.){}($|\..*)",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
}
# Options that map expressions to values.
MAPPED = re.compile(r"\w+_pattern")
MAPPED_FORM = r"(.*\.)?({})$"
MAPPED_FORMS = {"FOURIERFT": r".*\.{}$", "C3A": r".*\.{}$", "OSF": r".*?{}"}


def require_quick_patterns(
    options: Mapping[str, Any],
    names: Sequence[str],
    field: str,
    error: type[LoraKitError] = AdapterError,
) -> None:
    """Refuse regular expressions that take too long on the names of a model.

    Args:
        options: configuration of an adapter, by the names of PEFT's options.
        names: names of modules and parameters.
        field: file or section with the options, for the message.
        error: class of the error.

    Raises:
        error: naming the option and the expression.
    """
    tried = ["", ""]

    def match_all() -> None:
        for option, pattern, form in _expressions(options):
            tried[:] = option, pattern
            try:
                compiled = re.compile(form.replace("{}", pattern, 1))
            except (re.error, OverflowError, RecursionError):
                continue  # PEFT's error says why
            for name in names:
                compiled.match(name)

    try:
        within_limits(match_all, SECONDS)
    except TooSlowError as problem:
        option, pattern = tried
        raise error(
            f"{field}{option}: a regular expression that takes too long on the names of the "
            f"modules (got {pattern[:200]!r}, {problem}). Fix: name the modules in a list"
        ) from problem


def _expressions(options: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield option, expression and PEFT's form of each expression."""
    kind = options.get("peft_type")
    method = str(getattr(kind, "value", kind))
    for option, value in options.items():
        if option in COMPLETE and isinstance(value, str):
            yield option, value, r"(?:{})\Z"
        elif option in PARTS:
            for part in [value] if isinstance(value, str) else value or ():
                yield option, str(part), PARTS[option]
        elif MAPPED.fullmatch(option) and isinstance(value, Mapping):
            for part in value:
                yield option, str(part), MAPPED_FORMS.get(method, MAPPED_FORM)
