#!/usr/bin/env python3
"""Writes the table of values in imagegate/README.md from the comments in imagegate/values.yaml.

    python helm/readme.py            write it
    python helm/readme.py --check    exit 1 if it is not current

The comment of a key is the lines right above it. Every key has one, down to maps whose keys are not the chart's own:
there none has. Whether keys and values.schema.json agree is tested elsewhere.
"""

import json
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parent / "imagegate"
BEGIN = "<!-- Made by helm/readme.py from values.yaml. -->\n"
END = "<!-- End of what helm/readme.py made. -->\n"
# Longer defaults would make the tables unreadable.
LONGEST = 48
# Stands for the default of a key whose own keys have rows.
BELOW = object()


def comment_above(lines, line):
    """The comment that ends right above a line, as one text."""
    found = []
    indent = len(lines[line]) - len(lines[line].lstrip())
    while line and lines[line - 1].startswith(" " * indent + "#"):
        line -= 1
        found.insert(0, lines[line].strip().lstrip("#").strip())
    return " ".join(found)


def keys_of(node, lines):
    """The keys of a mapping, each with its comment and its value's node."""
    return [(key.value, comment_above(lines, key.start_mark.line), value) for key, value in node.value]


def documented_below(node, lines):
    """Whether a value is a map with keys of the chart's own."""
    return isinstance(node, yaml.MappingNode) and any(comment for _, comment, _ in keys_of(node, lines))


def rows(node, lines, path, missing):
    """Rows of a map: path, comment, default."""
    found = []
    for key, comment, value in keys_of(node, lines):
        here = f"{path}.{key}" if path else key
        if not comment:
            missing.append(here)
        if documented_below(value, lines):
            found.append((here, comment, BELOW))
            found += rows(value, lines, here, missing)
        else:
            found.append((here, comment, yaml.safe_load(yaml.serialize(value))))
    return found


def row(path, comment, default):
    comment = comment.replace("|", "\\|")
    if default is BELOW:
        return f"| `{path}` | | {comment} |"
    text = json.dumps(default)
    shown = f"`{text}`" if len(text) <= LONGEST else "see values.yaml"
    return f"| `{path}` | {shown} | {comment} |"


def table(found):
    return ["| Key | Default | Meaning |", "|---|---|---|", *(row(*entry) for entry in found), ""]


def made_from(text):
    """The part of the README that values.yaml makes, and the keys without a comment."""
    lines = text.splitlines()
    missing, sections, alone = [], [], []
    for key, comment, value in keys_of(yaml.compose(text), lines):
        if not comment:
            missing.append(key)
        if documented_below(value, lines):
            sections += [f"### `{key}`", "", comment, "", *table(rows(value, lines, key, missing))]
        else:
            alone.append((key, comment, yaml.safe_load(yaml.serialize(value))))
    return "\n".join(["### General", "", *table(alone), *sections]), missing


def main(arguments):
    made, missing = made_from((CHART / "values.yaml").read_text())
    if missing:
        print(f"error: values.yaml: no comment above {', '.join(missing)}", file=sys.stderr)
        return 1
    readme = CHART / "README.md"
    before = readme.read_text()
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        print("error: README.md: the marks around the table of values are gone", file=sys.stderr)
        return 1
    after = f"{head}{BEGIN}\n{made}\n{END}{tail}"
    if "--check" in arguments:
        if before != after:
            print("error: README.md: not current; run `python helm/readme.py`", file=sys.stderr)
            return 1
        return 0
    readme.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
