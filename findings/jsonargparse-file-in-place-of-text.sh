#!/usr/bin/env bash
# jsonargparse 4.53.0: where an option accepts a text or an object of a class, a text that happens to be the name of an
# existing file is replaced by what the file holds, also when the value comes as plain data and not from a command line.
# A list of images, "list.csv", so arrives as its lines. Options typed as text alone keep the name.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'jsonargparse[signatures]==4.53.0'
cd "$folder"
cat > shown.py <<'PYTHON'
import sys

from jsonargparse import ArgumentParser


class Images:
    pass


class Data:
    def __init__(self, source: "str | Images" = "", name: str = ""):
        self.source, self.name = source, name


with open("list.csv", "w") as file:
    file.write("path,label\n0.png,cat\n")
parser = ArgumentParser()
parser.add_subclass_arguments(Data, "data")
found = parser.parse_object(
    {"data": {"class_path": "__main__.Data", "init_args": {"source": "list.csv", "name": "list.csv"}}}
)
arguments = found.data.init_args
print("text or object:", repr(str(arguments.source)))
print("text alone:    ", repr(arguments.name))
if str(arguments.source) == "list.csv" or arguments.name != "list.csv":
    sys.exit("changed: the name of the file is kept")
PYTHON
"$folder/venv/bin/python" shown.py
# Seen:
#   text or object: 'path,label\n0.png,cat\n'
#   text alone:     'list.csv'
