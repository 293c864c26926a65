"""Names and values of options: typos and single values where a list is meant."""

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from icefall_kd.core.config import rename_option

OWN = ("config", "help", "print_config")  # options of the parser itself
EXPECTED = {
    "bool": "true or false",
    "dict": "a mapping such as {a: 0.5}",
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "tuple": "a list such as [a, b]",
}


def option_names(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all options of a dataclass, groups included."""
    for f in dataclasses.fields(cls):
        yield f"{prefix}{f.name}"
        inner = dataclass_of(f.type)
        if inner is not None:
            yield from option_names(inner, f"{prefix}{f.name}.")


def dataclass_of(kind: Any) -> Optional[type]:
    """Return the dataclass that a field's type is or allows, if any."""
    for option in (kind, *typing.get_args(kind)):
        if dataclasses.is_dataclass(option):
            return option
    return None


def kind_of(cls: type, name: str) -> Any:
    """Return the type of an option, None for a key within a mapping.

    Raises:
      KeyError: if there is no such option.
    """
    kind: Any = cls
    for part in name.split("."):
        inner = dataclass_of(kind)
        if inner is None:
            return None
        kind = {f.name: f.type for f in dataclasses.fields(inner)}[part]
    return kind


def suggest(cls: type, name: str, dashes: str = "") -> str:
    """Return "; did you mean ...?" with the options nearest to an unknown name.

    Args:
      dashes: what an option begins with.
    """
    group, _, leaf = name.rpartition(".")
    known = list(option_names(cls))
    siblings = [k for k in known if k.rpartition(".")[0] == group]
    for options in (siblings, known):
        leaves = [k.rpartition(".")[2] for k in options]
        near = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)
        found = [k for k, other in zip(options, leaves) if other in near]
        if found:
            return f"; did you mean {' or '.join(dashes + k for k in found[:3])}?"
    return f"; known: {', '.join(dashes + k for k in siblings or known)}"


def check_keys(cls: type, values: Any, where: str, prefix: str = "") -> None:
    """Refuse keys of a YAML file that are no options, empty ones included.

    jsonargparse lets ``unknown: {}`` pass, and a misspelt term with only defaults
    looks like that.

    Args:
      cls: dataclass of the whole configuration.
      where: the file, for the message.
    Raises:
      ValueError: naming the key, its place and the nearest options.
    """
    if not isinstance(values, Mapping):
        return
    for key, value in values.items():
        name = f"{prefix}{key}"
        try:
            kind = kind_of(cls, name)
        except KeyError as e:
            raise ValueError(
                f"{where}: unknown option {name}{suggest(cls, name)}"
            ) from e
        if dataclass_of(kind) is not None:
            check_keys(cls, value, where, f"{name}.")


def as_lists(cls: type, values: Any) -> Any:
    """Return values of a YAML file, a single one for an option of several in a list."""
    if not isinstance(values, Mapping):
        return values
    kinds = {f.name: f.type for f in dataclasses.fields(cls)}
    found = {}
    for key, value in values.items():
        inner = dataclass_of(kinds[key])
        if inner is not None:
            value = as_lists(inner, value)
        elif _is_tuple(kinds[key]) and isinstance(value, (str, int, float)):
            value = [value]
        found[key] = value
    return found


def check_arguments(cls: type, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with single values in a list, as in :func:`as_lists`.

    ``-`` in an option's name reads as ``_``.

    Raises:
      ValueError: if there is no such option; the message has the nearest.
    """
    found: list[str] = []
    kind: Any = None  # of the option before, which waits for its value
    for argument in arguments:
        if not argument.startswith("--"):
            found.append(_listed(argument) if _is_tuple(kind) else argument)
            kind = None
            continue
        name, equals, value = argument[2:].partition("=")
        name = rename_option(name.replace("-", "_"))
        try:
            bare = name.rstrip("+")
            if name.endswith(".help"):
                bare = name[: -len(".help")]
            kind = None if name in OWN else kind_of(cls, bare)
        except KeyError as e:
            raise ValueError(
                f"--{name}: unknown option{suggest(cls, name, '--')}"
            ) from e
        if equals and _is_tuple(kind):
            value = _listed(value)
        found.append(f"--{name}{equals}{value}")
    return found


def explain(error: Exception, arguments: Sequence[str], files: Mapping) -> str:
    """Return one line for an error of jsonargparse: where, which option, what to do.

    Args:
      arguments: of the command line.
      files: path -> content of each YAML file.
    """
    text = str(error)
    name = ".".join(re.findall(r'Parser key "([^"]+)"', text))
    reason = re.search(r"Expected an? <class '(\w+)'>\. Got value: ([^\n]*)", text)
    if not name or reason is None:
        return " ".join(text.split())
    kind, value = reason.groups()
    reason = f"expected {EXPECTED.get(kind, kind)}, got {json.dumps(value)}"
    if any(a.partition("=")[0] == f"--{name}" for a in arguments):
        return f"--{name}: {reason}"
    where = [path for path, values in files.items() if _holds(values, name)]
    return f"{where[-1]}: {name}: {reason}" if where else f"{name}: {reason}"


def _is_tuple(kind: Any) -> bool:
    return any(typing.get_origin(k) is tuple for k in (kind, *typing.get_args(kind)))


def _listed(value: str) -> str:
    return value if value.startswith("[") else f"[{value}]"


def _holds(values: Any, name: str) -> bool:
    """Return whether nested mappings have the dotted ``name``."""
    for part in name.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True
