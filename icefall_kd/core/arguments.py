"""Parse a dataclass of options from YAML files and the command line.

jsonargparse checks types and prints ``--help``.  This module adds:

- one-line errors with the file and the nearest known option;
- ``-`` instead of ``_`` in the names of options;
- a single value where an option takes a list;
- former names of options.
"""

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional, TypeVar

import yaml

from icefall_kd.core.config import REMOVED_OPTIONS, rename_option, rename_options
from icefall_kd.core.files import as_path, read_yaml

T = TypeVar("T")

PARSER_OPTIONS = ("config", "help", "print_config")
EXPECTED = {
    "bool": "true or false",
    "dict": "a mapping such as {a: 0.5}",
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "tuple": "a list such as [a, b]",
}


def parse_dataclass(
    cls: type[T],
    arguments: Sequence[str],
    *,
    prog: str,
    description: str,
    defaults: Mapping[str, Any],
) -> T:
    """Parse ``--config file.yaml`` and overrides such as ``--optim.base_lr 0.03``.

    A later ``--config`` or override replaces the values of an earlier one.

    Args:
      cls: frozen dataclass; a field is an option, or a dataclass of options (a group).
      arguments: of the command line, without the command.
      prog, description: command and its description, for ``--help``.
      defaults: dotted name of an option -> value that replaces the default in ``cls``.
    Raises:
      ValueError: if a file is missing, an option is unknown or a value is wrong.
    """
    from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML, repeatable")
    parser.add_class_arguments(cls)
    parser.set_defaults(dict(defaults))
    normalised, files = _normalise_arguments(cls, arguments)
    try:
        namespace = parser.parse_args(normalised)
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        values = vars(instantiate(namespace))
    except ArgumentError as e:
        raise ValueError(_explain_error(e, normalised, files)) from e
    values.pop("config")
    return cls(**values)


def _normalise_arguments(
    cls: type, arguments: Sequence[str]
) -> tuple[list[str], dict[str, Any]]:
    """Return arguments for jsonargparse, and path -> options of each YAML file.

    Check every name, convert a single value for a tuple to a list, and replace the path
    of a YAML file by its checked content.

    Raises:
      ValueError: if an option is unknown or a YAML file is missing or invalid.
    """
    normalised: list[str] = []
    files: dict[str, Any] = {}
    name, kind = "", None  # name and type of the option whose value comes next
    for argument in arguments:
        prefix, value = "", argument
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = rename_option(name.replace("-", "_"))
            kind = _argument_type(cls, name)
            prefix = f"--{name}{equals}"
            if not equals:
                normalised.append(prefix)
                continue
        if name == "config":
            files[value] = _read_options(cls, value)
            value = yaml.safe_dump(files[value], sort_keys=False)
        elif _group_of(kind) is not None and not name.endswith(".help"):
            value = _parse_group(cls, name, kind, value)
        elif _is_tuple(kind) and not value.startswith("["):
            value = f"[{value}]"
        normalised.append(f"{prefix}{value}")
        name, kind = "", None
    return normalised, files


def _argument_type(cls: type, name: str) -> Any:
    if name in PARSER_OPTIONS:
        return None
    try:
        return _option_type(cls, name.rstrip("+").removesuffix(".help"))
    except KeyError as e:
        message = f"--{name}: unknown option{_suggest(cls, name, '--')}"
        raise ValueError(message) from e


def _parse_group(cls: type, name: str, kind: Any, text: str) -> str:
    """Check the value of a group on the command line; return it for jsonargparse."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ValueError(f"--{name}: {text!r} is not YAML") from e
    if isinstance(value, str) and as_path(value).is_file():
        return text  # jsonargparse reads the file
    if not _check_group(f"--{name}", kind, value):
        return text
    values = rename_options(value, f"{name}.")
    values = _normalise_values(cls, values, f"--{name}", f"{name}.")
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=True)


def _read_options(cls: type, path: str) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except FileNotFoundError as e:
        raise ValueError(f"--config {path}: no such file") from e
    if not isinstance(values, (Mapping, type(None))):
        raise ValueError(f"{path}: not a mapping of options to values")
    return _normalise_values(cls, rename_options(values or {}), path)


def _normalise_values(
    cls: type, values: Mapping[str, Any], path: str, prefix: str = ""
) -> dict[str, Any]:
    """Check the names and groups, and convert single values for tuples to lists.

    jsonargparse does not reject an unknown key with an empty mapping, such as the
    misspelt term ``ctcc: {}``.

    Args:
      path: YAML file or option that has the values, for error messages.
      prefix: group of ``values`` in ``cls``, for example "optim.".
    """
    normalised = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        try:
            kind = _option_type(cls, name)
        except KeyError as e:
            message = f"{path}: unknown option {name}{_suggest(cls, name)}"
            raise ValueError(message) from e
        if _group_of(kind) is not None and _check_group(f"{path}: {name}", kind, value):
            value = _normalise_values(cls, value, path, f"{name}.")
        elif _is_tuple(kind) and isinstance(value, (str, int, float)):
            value = [value]
        normalised[key] = value
    return normalised


def _option_names(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all options and groups."""
    for f in dataclasses.fields(cls):
        yield f"{prefix}{f.name}"
        group = _group_of(f.type)
        if group is not None:
            yield from _option_names(group, f"{prefix}{f.name}.")


def _option_type(cls: type, name: str) -> Any:
    """Return the type of an option, None for a key in a mapping.

    Raises:
      KeyError: if ``cls`` has no such option.
    """
    kind: Any = cls
    for part in name.split("."):
        group = _group_of(kind)
        if group is None:
            return None
        kind = {f.name: f.type for f in dataclasses.fields(group)}[part]
    return kind


def _group_of(kind: Any) -> Optional[type]:
    """Return the dataclass in a type such as ``Optional[CtcConfig]``, if any."""
    for option in (kind, *typing.get_args(kind)):
        if dataclasses.is_dataclass(option):
            return option
    return None


def _check_group(where: str, kind: Any, value: Any) -> bool:
    """Return True for a mapping, False for the null of an optional group.

    Args:
      where: option, with its file if any, for the error message.
      kind: type of the option.
    Raises:
      ValueError: if the value is something else.
    """
    group = _group_of(kind)
    if isinstance(value, Mapping) or (value is None and kind is not group):
        return value is not None
    first = dataclasses.fields(group)[0]
    example = "..." if _group_of(first.type) is not None else json.dumps(first.default)
    raise ValueError(
        f"{where}: expected a mapping, for example {{{first.name}: {example}}}, got "
        f"{json.dumps(value)}"
    )


def _is_tuple(kind: Any) -> bool:
    return any(typing.get_origin(k) is tuple for k in (kind, *typing.get_args(kind)))


def _suggest(cls: type, name: str, dashes: str = "") -> str:
    """Return "; did you mean ...?" with the options nearest to an unknown name.

    Only the first unknown part of the name is compared.  For a removed option, return
    what to set instead.

    Args:
      dashes: prefix of an option in the text.
    """
    if name in REMOVED_OPTIONS:
        return f"; {REMOVED_OPTIONS[name]}"
    known, parts = list(_option_names(cls)), name.split(".")
    depth = 0
    while ".".join(parts[: depth + 1]) in known:
        depth += 1
    group, wrong, rest = ".".join(parts[:depth]), parts[depth], parts[depth + 1 :]
    siblings = [k for k in known if k.rpartition(".")[0] == group]
    for options in [siblings] if rest else [siblings, known]:
        leaves = [k.rpartition(".")[2] for k in options]
        near = difflib.get_close_matches(wrong, leaves, n=1, cutoff=0.6)
        found = [k for k, other in zip(options, leaves) if other in near][:3]
        if found:
            complete = (".".join([k, *rest]) for k in found)
            found = [c if c in known else k for c, k in zip(complete, found)]
            return f"; did you mean {' or '.join(dashes + k for k in found)}?"
    return f"; known: {', '.join(dashes + k for k in siblings)}"


def _explain_error(error: Exception, arguments: Sequence[str], files: Mapping) -> str:
    """Return one line for an error of jsonargparse: option, expected and given value.

    Args:
      arguments, files: result of :func:`_normalise_arguments`.
    """
    text = str(error)
    name = ".".join(re.findall(r'Parser key "([^"]+)"', text))
    found = re.search(
        r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.*)\])\. "
        r"Got value: ([^\n]*)",
        text,
    )
    if not name or found is None:
        return " ".join(text.split())
    kind, literals, value = found.groups()
    expected = f"one of {literals}" if literals else EXPECTED.get(kind, kind)
    message = f"{name}: expected {expected}, got {json.dumps(value)}"
    if any(a.partition("=")[0] == f"--{name}" for a in arguments):
        return f"--{message}"
    paths = [path for path, values in files.items() if _has_option(values, name)]
    return f"{paths[-1]}: {message}" if paths else message


def _has_option(values: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True
