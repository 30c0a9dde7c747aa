"""Join the modules of a package into one readable file with only the definitions that are needed.

Definitions are copied as text, with their comments, if the entry can reach them by name.  The file
can be pasted among other code:

- names at its top level begin with an underscore, except the entry's and ``torch``;
- its imports have names of their own (``_Tensor``, ``_nn``, ``_F``);
- annotations that name later definitions are strings, so it needs no import from `__future__`.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .program import Definition, Import, JoinError, Program
from .pruning import prune
from .scopes import FUNCTIONS, GlobalName, evaluated, global_names
from .text import Edit, Text

__all__ = ["JoinError", "Joined", "Section", "imported_packages", "join"]

_WIDTH = 100
_BLOCKS = (*FUNCTIONS, ast.ClassDef)
_TORCH = Import("torch")
_PREFIX = re.compile(r"\s*(#\s*)?")
_USUAL_NAMES = {"torch.nn.functional": "_F"}
_DATACLASS = Import("dataclasses", "dataclass")
# A dataclass whose annotations are strings looks its module up in `sys.modules`.  They are strings
# where code that postpones annotations executes the file's text, and text has no module.
_DATACLASS_TEXT = '''

def _dataclass(kind=None, /, **options):
    """`dataclasses.dataclass`, also where this text is executed and has no module to look up."""
    if kind is None:
        return lambda kind: _dataclass(kind, **options)
    module, kind.__module__ = kind.__module__, "builtins"
    kind = _dataclasses.dataclass(**options)(kind)
    kind.__module__ = module
    return kind
'''
_FOR_TOOLS = re.compile(r"#\s*(type:\s*ignore|noqa)\b.*")


@dataclass(frozen=True)
class Section:
    """A part of the file: its title, and its modules in order."""

    title: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Joined:
    """The joined modules."""

    text: str  # imports and definitions
    attributes: frozenset[str]  # names that occur as ``something.name``


def join(sources: Mapping[str, str], entry: tuple[str, str], sections: Sequence[Section]) -> Joined:
    """Join what ``entry`` needs, in the order of ``sections``.

    Within a module the order stays.  A definition moves up only if an earlier statement needs it
    when the file is loaded.

    Args:
        sources: texts by module, of all modules that may be needed.
        entry: module and name of the entry.

    Raises:
        JoinError: the modules use something unsupported; the message says what.
    """
    program = Program(prune(sources, entry), entry)
    order = _reading_order(program, sections)
    writer = _Writer(program, [definition for definition, _ in order], sections)
    parts = [writer.imports()]
    previous: Definition | None = None
    section, module = "", ""
    titles = {name: s.title for s in sections for name in s.modules}
    for definition, home in order:
        if home != module:
            heading = f"# {f' {titles[home]} ':=^96}\n\n" if titles[home] != section else ""
            docstring = writer.reworded(program.modules[home].docstring, home)
            heading += "".join(f"# {line}".rstrip() + "\n" for line in docstring.splitlines())
            parts += ["\n\n\n" if previous else "\n\n", heading, "\n"]
            section, module = titles[home], home
        elif previous is not None:
            blocks = isinstance(definition.node, _BLOCKS) or isinstance(previous.node, _BLOCKS)
            parts.append("\n\n\n" if blocks else "\n\n" if definition.after_blank else "\n")
        parts.append(writer.written(definition))
        previous = definition
    text = "".join(parts) + "\n"
    _check_names(text, program.entry)
    nodes = [node for d in program.kept for node in ast.walk(d.node)]
    return Joined(text, frozenset(n.attr for n in nodes if isinstance(n, ast.Attribute)))


def _reading_order(program: Program, sections: Sequence[Section]) -> list[tuple[Definition, str]]:
    """Definitions in the file's order, each with the module whose heading it is under."""
    places = {name: i for i, name in enumerate(m for s in sections for m in s.modules)}
    for definition in sorted(program.kept, key=str):
        if definition.module not in places:
            raise JoinError(
                f"the file needs {definition}, but no section lists the module "
                f"{definition.module}; add it to SECTIONS, where a reader should meet it"
            )

    def place(definition: Definition) -> tuple[int, int]:
        return places[definition.module], definition.first_line

    placed: dict[Definition, str] = {}
    waiting: list[Definition] = []

    def put(definition: Definition, home: str) -> None:
        if definition in placed:
            return
        if definition in waiting:
            circle = " and ".join(str(d) for d in waiting[waiting.index(definition) :])
            raise JoinError(f"{circle} need each other as the file is loaded")
        waiting.append(definition)
        for needed in sorted(_needed_at_once(program, definition), key=place):
            put(needed, home)
        waiting.pop()
        placed[definition] = home

    for definition in sorted(program.kept, key=place):
        put(definition, definition.module)
    return list(placed.items())


def _needed_at_once(program: Program, definition: Definition) -> set[Definition]:
    """Definitions that must exist when the statement of a definition runs."""
    targets = {id(used.node): target for used, target in program.references(definition)}
    needed: set[Definition] = set()
    called: list[Definition] = []
    for node, kind in evaluated(definition.node):
        if kind == "annotation":
            continue
        functions = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
        functions += [node] if kind == "called" and isinstance(node, ast.expr) else []
        roots = {id(n) for f in functions for n in ast.walk(f)}
        for inner in ast.walk(node):
            target = targets.get(id(inner))
            if isinstance(target, Definition) and target is not definition:
                needed.add(target)
                called += [target] if id(inner) in roots else []
    while called:  # the body of a called definition runs, too
        function = called.pop()
        for target in _named_in_body(program, function):
            if target is definition:
                raise JoinError(
                    f"{definition} and {function} need each other as the file is loaded"
                )
            if target not in needed:
                needed.add(target)
                called.append(target)
    return needed


def _named_in_body(program: Program, definition: Definition) -> Iterator[Definition]:
    """Definitions used by the body of a called definition; for a class, by its special methods."""
    idle: list[ast.AST] = [
        node for node, kind in evaluated(definition.node) if kind == "annotation"
    ]
    if isinstance(definition.node, ast.ClassDef):
        methods = [m for m in definition.node.body if isinstance(m, FUNCTIONS)]
        idle += [m for m in methods if not m.name.startswith("__")]
    passed_over = {id(inner) for node in idle for inner in ast.walk(node)}
    for used, target in program.references(definition):
        if isinstance(target, Definition) and id(used.node) not in passed_over:
            yield target


class _Writer:
    """Writes definitions with their names in the file."""

    def __init__(
        self, program: Program, order: Sequence[Definition], sections: Sequence[Section]
    ) -> None:
        self._program = program
        self._titles = {name: s.title for s in sections for name in s.modules}
        self._place = {definition: i for i, definition in enumerate(order)}
        self._names: dict[tuple[Definition, str], str] = {}
        bound: dict[str, Definition] = {}
        for definition in order:
            for name in definition.names:
                new = name if definition is program.entry else f"_{name.removeprefix('_')}"
                if new in bound:
                    raise JoinError(
                        f"{bound[new]} and {definition} would both be {new}; give one another name"
                    )
                bound[new] = definition
                self._names[definition, name] = new
        self._imports: dict[Import, str] = {}  # and what they are called
        for definition in order:
            for _, target in program.references(definition):
                if isinstance(target, Import) and target not in self._imports:
                    self._imports[target] = _import_name(target, bound)

    def imports(self) -> str:
        """The file's imports, sorted as by isort: the standard library first, then the rest."""
        lines: dict[bool, list[tuple[bool, str, str]]] = {True: [], False: []}
        for target, name in self._imports.items():
            if target == _TORCH:
                line = "import torch"
            elif target == _DATACLASS:
                line = "import dataclasses as _dataclasses"
            elif target.name:
                line = f"from {target.module} import {target.name} as {name}"
            else:
                line = f"import {target.module} as {name}"
            found = (line.startswith("from"), target.module, line)
            lines[_is_standard(target.module)].append(found)
        blocks = ["\n".join(line for *_, line in sorted(set(lines[k]))) for k in (True, False)]
        text = "\n\n".join(block for block in blocks if block)
        return text + (_DATACLASS_TEXT if _DATACLASS in self._imports else "")

    def written(self, definition: Definition) -> str:
        """The text of a definition."""
        text = Text(definition.text, definition.first_line)
        edits = list(self._renamings(definition, text))
        for node, kind in evaluated(definition.node):
            if kind == "annotation" and self._comes_later(definition, node):
                start, end = text.span(node)
                inside = [e for e in edits if start <= e.start and e.end <= end]
                written = " ".join(text.edited(inside, start, end).split())
                quote = "'" if '"' in written else '"'
                edits = [e for e in edits if e not in inside]
                edits.append(Edit(start, end, f"{quote}{written}{quote}"))
        edits += self._prose(definition, text)
        lines = text.edited(edits).splitlines()
        return "\n".join(line.rstrip() for line in lines)

    def _renamings(self, definition: Definition, text: Text) -> Iterator[Edit]:
        node = definition.node
        if isinstance(node, _BLOCKS):
            start = text.at(node.lineno, node.col_offset)
            line = text.slice(start, start + 2 * len(node.name) + 100)
            match = re.match(r"(?:async\s+)?(?:def|class)\s+(\w+)", line)
            assert match is not None and match[1] == node.name
            start += len(line[: match.start(1)].encode())
            new = self._names[definition, node.name]
            yield Edit(start, start + len(node.name.encode()), new)
        in_strings: dict[int, ast.JoinedStr] = {}
        for string in ast.walk(node):
            if isinstance(string, ast.JoinedStr):
                for name_node in ast.walk(string):
                    in_strings.setdefault(id(name_node), string)  # the outermost
        strings: dict[int, set[tuple[str, str]]] = {}
        for used, target in self._program.references(definition):
            name = used.node.id
            new = self._new_name(target, definition.module, name)
            root = new.partition(".")[0]
            if new == name:
                continue
            if root in used.hidden:
                raise JoinError(
                    f"{definition}, line {used.node.lineno}: {name} becomes {new} in the file, "
                    f"but {root} is a local name there; give that another name"
                )
            if id(used.node) in in_strings:
                strings.setdefault(id(in_strings[id(used.node)]), set()).add((name, new))
                continue
            yield Edit(*text.span(used.node), new)
        for string in ast.walk(node):
            if id(string) in strings:
                assert isinstance(string, ast.JoinedStr)
                yield from self._in_string(definition, string, strings[id(string)], text)

    def _in_string(
        self,
        definition: Definition,
        string: ast.JoinedStr,
        names: set[tuple[str, str]],
        text: Text,
    ) -> Iterator[Edit]:
        """Names in an f-string, whose places Python 3.11 does not know."""
        start, end = text.span(string)
        source = text.slice(start, end)
        for name, new in names:
            expected = sum(isinstance(n, ast.Name) and n.id == name for n in ast.walk(string))
            matches = [
                group.start() + match.start()
                for group in re.finditer(r"\{[^{}]*\}", source)
                for match in re.finditer(rf"(?<![\w.]){name}\b", group[0])
            ]
            if len(matches) != expected:
                raise JoinError(
                    f"{definition}, line {string.lineno}: {name} in an f-string can't be renamed; "
                    "take it out of the string"
                )
            for match in matches:
                place = start + len(source[:match].encode())
                yield Edit(place, place + len(name.encode()), new)

    def _new_name(self, target: Definition | Import, module: str, name: str) -> str:
        if isinstance(target, Import):
            return self._imports[target]
        # The name that it has where it is defined.
        siblings = self._program.modules
        while name in siblings[module].siblings:
            module, name = siblings[module].siblings[name]
        return self._names[target, name]

    def _comes_later(self, definition: Definition, annotation: ast.AST) -> bool:
        inside = {id(node) for node in ast.walk(annotation)}
        return any(
            isinstance(target, Definition) and self._place[target] >= self._place[definition]
            for used, target in self._program.references(definition)
            if id(used.node) in inside
        )

    def _prose(self, definition: Definition, text: Text) -> Iterator[Edit]:
        """Edits that put the file's names into docstrings and comments."""
        for node in ast.walk(definition.node):
            if isinstance(node, _BLOCKS) and ast.get_docstring(node) is not None:
                first = node.body[0]
                start, end = text.span(first)
                # With its indentation, which counts in the width of a line.
                indent = " " * first.col_offset
                prose = self.reworded(indent + text.slice(start, end), definition.module)
                yield Edit(start, end, prose.removeprefix(indent))
        tokens = tokenize.generate_tokens(io.StringIO(definition.text).readline)
        for token in tokens:
            if token.type == tokenize.COMMENT:
                line = token.start[0] + definition.first_line - 1
                before = token.line[: token.start[1]].encode()
                start = text.at(line, len(before))
                new = self.reworded(_FOR_TOOLS.sub("", token.string).rstrip(), definition.module)
                yield Edit(start, start + len(token.string.encode()), new)

    def reworded(self, prose: str, module: str) -> str:
        """Prose of a module with the file's names in backquotes."""

        def renamed(match: re.Match[str]) -> str:
            dotted = match[1]
            if dotted.startswith("finetune."):
                return self._reference(dotted.removeprefix("finetune."))
            root, dot, rest = dotted.partition(".")
            try:
                target = self._program.resolve(module, root)
            except JoinError:
                return match[0]
            if isinstance(target, Definition) and target in self._place:
                return f"`{self._new_name(target, module, root)}{dot}{rest}`"
            if isinstance(target, Import) and target in self._imports:
                return f"`{self._imports[target]}{dot}{rest}`"
            return match[0]

        def renamed_word(name: str) -> str:
            return re.sub(r"(.+)", renamed, name).strip("`")

        # A command of the project's, in parentheses.
        prose = re.sub(r"\s*\(``python -m [^`]*``\)", "", prose)
        prose = re.sub(r"``(finetune\.[\w.]+)``", r"`\1`", prose)
        prose = re.sub(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)", renamed, prose)
        # Errors in a list of what is raised stand without backquotes.
        prose = re.sub(
            r"(?<=\n)( +)([A-Z]\w*Error)(?=: )", lambda m: m[1] + renamed_word(m[2]), prose
        )
        return _reflowed(prose)

    def _reference(self, dotted: str) -> str:
        """The file's name for a module of the package, or for a name in one."""
        if dotted in self._titles:
            return f'the section "{self._titles[dotted]}"'
        module, _, name = dotted.rpartition(".")
        parts = self._program.modules.get(module)
        definition = parts.definitions.get(name) if parts else None
        if definition is not None and definition in self._place:
            return f"`{self._names[definition, name]}`"
        return f"the project's `{name}`"


def _reflowed(prose: str) -> str:
    """Prose in which paragraphs are wrapped again where new names made a line too long."""
    lines, written = prose.split("\n"), []
    while lines:
        paragraph = [lines.pop(0)]
        if len(paragraph[0]) + 2 <= _WIDTH:  # a heading gets "# " in front
            written += paragraph
            continue
        start = _PREFIX.match(paragraph[0])
        assert start is not None
        while lines and (more := _PREFIX.match(lines[0])) is not None and more[0] == start[0]:
            if lines[0][len(start[0]) :].strip(' "') == "":
                break  # what ends a docstring
            paragraph.append(lines.pop(0))
        text = " ".join(line[len(start[0]) :] for line in paragraph)
        written += textwrap.wrap(
            text,
            _WIDTH - 2,
            initial_indent=start[0],
            subsequent_indent=start[0],
            break_long_words=False,
        )
    return "\n".join(written)


def _import_name(target: Import, bound: Mapping[str, Definition]) -> str:
    """The name of an import in the file: its last word with an underscore; ``torch`` stays."""
    if target == _TORCH:
        return target.module
    words = target.module.split(".") + ([target.name] if target.name else [])
    name = _USUAL_NAMES.get(target.module, f"_{words[-1]}")
    if name in bound:  # a definition's
        name = "_" + "_".join(words if target.name else [*words, "module"])
    if name in bound:
        raise JoinError(f"{bound[name]} has the name of an import; give it another")
    return name


def _check_names(text: str, entry: Definition) -> None:
    """Check that all names in the file are defined, and that it binds no others.

    Raises:
        JoinError: this module has a bug.
    """
    tree = ast.parse(text)
    bound: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, _BLOCKS):
            bound.add(node.name)
        else:
            stores = (n for n in ast.walk(node) if isinstance(n, ast.Name))
            bound |= {n.id for n in stores if isinstance(n.ctx, ast.Store)}
    public = {name for name in bound if not name.startswith("_")} - {"torch", *entry.names}
    builtins = set(dir(__builtins__)) if not isinstance(__builtins__, dict) else set(__builtins__)
    used: Iterable[GlobalName] = (u for node in tree.body for u in global_names(node))
    missing = {u.node.id for u in used} - bound - builtins - {"__name__", "__file__"}
    if public or missing:
        raise JoinError(f"joined wrongly: {', '.join(sorted(public | missing))}")


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def imported_packages(source: str) -> Iterator[str]:
    """Packages that a file imports anywhere, other than the standard library."""
    for node in ast.walk(ast.parse(source)):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        for module in modules:
            if not _is_standard(module):
                yield module.partition(".")[0] or module
