"""A YAML file as plain values that remember their lines; `${NAME}` is read from the environment here.

Scalars are not made into numbers or booleans: the field that takes one knows what it may be, so that
a refusal can quote the file. Anchors, aliases and merge keys (`<<`) are supported; tags are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

import yaml

from .faults import Fault, Faults, Loc, spelled

_YAML = "tag:yaml.org,2002:"
#: An alias may stand for much; a file that unfolds to more values than this is a mistake or an attack.
MOST_VALUES = 50_000

_ENV = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Kind(Enum):
    """How YAML reads a scalar. What came from the environment or stands in quotes is text."""

    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATE = "date"
    NOTHING = "nothing"


_KINDS = {
    "str": Kind.TEXT,
    "value": Kind.TEXT,
    "merge": Kind.TEXT,
    "int": Kind.NUMBER,
    "float": Kind.NUMBER,
    "bool": Kind.BOOLEAN,
    "timestamp": Kind.DATE,
    "null": Kind.NOTHING,
}


@dataclass(frozen=True, slots=True)
class Scalar:
    """A value as it is written."""

    text: str
    kind: Kind = Kind.TEXT


Value: TypeAlias = "Scalar | list[Value] | dict[str, Value]"


@dataclass(slots=True)
class Source:
    """What a file says, where it says it, and what is known to be wrong with it."""

    data: dict[str, Value]
    lines: dict[Loc, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    broken: set[Loc] = field(default_factory=set)
    #: What an unknown field most likely means: absent as it is spelled, and still not to be called absent.
    unsure: set[Loc] = field(default_factory=set)

    def line(self, loc: Loc) -> int | None:
        """The line of `loc`, or of what it would stand in."""
        return next((self.lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in self.lines), None)

    def fault(self, loc: Loc, message: str) -> None:
        self.faults.append(Fault(spelled(loc), self.line(loc), message))

    def wrong(self, loc: Loc, message: str) -> None:
        """A fault of `loc`, on which nothing else can then depend."""
        self.fault(loc, message)
        self.broken.add(loc)

    def sound(self, *locs: Loc) -> bool:
        """Whether nothing is known to be wrong with any of them, or with what they stand in."""
        doubtful = self.broken | self.unsure
        return not any(loc[:n] in doubtful for loc in locs for n in range(1, len(loc) + 1))

    def whole(self, loc: Loc) -> bool:
        """Whether nothing is known to be wrong with it, with what it stands in, or with what stands in it."""
        return self.sound(loc) and not any(each[: len(loc)] == loc for each in self.broken | self.unsure)

    def find(self, loc: Loc) -> tuple[Loc, Value]:
        """What stands at `loc`, or at as much of it as the file has."""
        here: Value = self.data
        for n, step in enumerate(loc):
            match here, step:
                case dict(), str() if step in here:
                    here = here[step]
                case list(), int() if step < len(here):
                    here = here[step]
                case _:
                    return loc[:n], here
        return loc, here

    def prune(self, loc: Loc) -> None:
        """Take what is wrong out, so that the rest can be read. An entry of a table stays, empty."""
        while isinstance(loc[-1], int) and loc[:-1] != ("routes",):
            loc = loc[:-1]
        self.broken.add(loc)
        _, parent = self.find(loc[:-1])
        table = loc[:-1] in (("routes",), ("upstreams",))
        match parent, loc[-1]:
            case (list(), int() as index):
                parent[index] = {}
            case (dict(), str() as key) if table:
                parent[key] = {}
            case (dict(), str() as key):
                parent.pop(key, None)


def read(text: str, *, name: str, environ: Mapping[str, str]) -> Source:
    """The values of a file. Raises Faults where it cannot be read at all."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise Faults(name, [_unreadable(text, error)]) from None
    except RecursionError:
        raise Faults(name, [Fault("", None, "the values are nested too deep to be read")]) from None
    if root is None:
        raise Faults(name, [Fault("", None, "the file is empty; it needs `upstreams` and `routes`")])
    line = root.start_mark.line + 1
    if not isinstance(root, yaml.MappingNode):
        what = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise Faults(name, [Fault("", line, f"expected a mapping with `upstreams` and `routes`, found {what}")])
    source = Source({})
    _Reader(source, name, environ).mapping(root, (), (), source.data)
    return source


class _Reader:
    def __init__(self, source: Source, name: str, environ: Mapping[str, str]) -> None:
        self.source = source
        self.name = name
        self.environ = environ
        self.count = 0

    def value(self, node: yaml.Node, loc: Loc, above: tuple[yaml.Node, ...]) -> Value:
        line = node.start_mark.line + 1
        self.source.lines.setdefault(loc, line)
        self.counted(node)
        if node in above:
            raise self.too_much("an alias stands within what it stands for", line)
        tag = node.tag.removeprefix(_YAML)
        if isinstance(node, yaml.ScalarNode) and tag in _KINDS:
            return self.scalar(node, loc, _KINDS[tag])
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return [self.value(item, (*loc, n), (*above, node)) for n, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self.mapping(node, loc, above, {})
        self.source.wrong(loc, f"the tag {node.tag.replace(_YAML, '!!')} is not read; leave it out")
        return Scalar("", Kind.NOTHING)

    def mapping(
        self, node: yaml.MappingNode, loc: Loc, above: tuple[yaml.Node, ...], into: dict[str, Value]
    ) -> dict[str, Value]:
        """What a mapping says itself, and after it what it merges in and does not say itself."""
        self.counted(node)
        above = (*above, node)
        first: dict[str, int] = {}
        merged: list[tuple[yaml.MappingNode, int]] = []
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == f"{_YAML}merge":
                merged += ((other, line) for other in self.merges(value, loc))
                continue
            if not isinstance(key, yaml.ScalarNode):
                message = "a key is a single word, not a list or a mapping"
                self.source.faults.append(Fault(spelled(loc), line, message))
                continue
            here = (*loc, key.value)
            if key.value in first:
                message = f"is written twice, first on line {first[key.value]}; keep one"
                self.source.faults.append(Fault(spelled(here), line, message))
                continue
            first[key.value] = line
            if key.value not in into:
                self.source.lines[here] = line
                into[key.value] = self.value(value, here, above)
        for other, line in merged:
            if other in above:
                raise self.too_much("a mapping merges itself", line)
            self.mapping(other, loc, above, into)
        return into

    def counted(self, node: yaml.Node) -> None:
        self.count += 1
        if self.count > MOST_VALUES:
            line = node.start_mark.line + 1
            raise self.too_much(f"the aliases unfold to more than {MOST_VALUES} values", line)

    def too_much(self, message: str, line: int) -> Faults:
        return Faults(self.name, [*self.source.faults, Fault("", line, message)])

    def merges(self, node: yaml.Node, loc: Loc) -> Iterator[yaml.MappingNode]:
        for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(each, yaml.MappingNode):
                yield each
            else:
                line = each.start_mark.line + 1
                self.source.faults.append(Fault(spelled((*loc, "<<")), line, "merges mappings only"))

    def scalar(self, node: yaml.ScalarNode, loc: Loc, kind: Kind) -> Scalar:
        text = node.value
        if "${" not in text:
            return Scalar(text, kind)
        problems: list[str] = []

        def replaced(found: re.Match[str]) -> str:
            name = found[1]
            if name is None:
                return "${"
            if not found[2]:
                problems.append("`${` is not closed; use ${NAME}, or $${ for the characters themselves")
            elif not _ENV_NAME.fullmatch(name):
                # Not all of it is quoted: what follows the name may be meant as a secret's default.
                start = re.split("[^A-Za-z0-9_]", name)[0]
                problems.append(f"`${{{start}…}}` holds more than a name; use ${{NAME}}, without a default")
            elif name in self.environ:
                return self.environ[name]
            else:
                problems.append(f"the variable {name} is not set in the environment; export {name}=… first")
            return ""

        text = _ENV.sub(replaced, text)
        for problem in problems:
            self.source.wrong(loc, problem)
        return Scalar(text)


def _unreadable(text: str, error: yaml.YAMLError) -> Fault:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return Fault("", line, f"the character {chr(error.character)!r} cannot stand in YAML")
    assert isinstance(error, yaml.MarkedYAMLError)
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.splitlines()
    here = lines[line - 1] if line <= len(lines) else ""
    problem = error.problem or error.context or "it cannot be parsed"
    if "single document" in (error.context or ""):
        return Fault("", line, "a second document begins here; keep one in a file")
    if "'\\t'" in problem:
        return Fault("", line, "this is not YAML: a tab; indent with spaces")
    hint = "; put ${…} in quotes inside { } or [ ]" if re.search(r"[{\[].*\$\{", here) else ""
    return Fault("", line, f"this is not YAML: {problem}{hint}")
