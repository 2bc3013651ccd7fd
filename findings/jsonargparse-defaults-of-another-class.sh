#!/usr/bin/env bash
# jsonargparse 4.53.0: where an option has a class by default and the command line names another one, the other class
# starts with the defaults of the first, wherever it would accept them, and not with its own. Nobody chose them, and
# nothing says so: a class whose optimiser is SGD by default is built with Adam.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'jsonargparse[signatures]==4.53.0'
cd "$folder"
cat > shown.py <<'PYTHON'
import sys

from jsonargparse import ArgumentParser


class Base:
    pass


class Pretraining(Base):
    def __init__(self, optimizer: str = "adam", rate: float = 0.001):
        self.optimizer, self.rate = optimizer, rate


class FineTuning(Base):
    def __init__(self, optimizer: str = "sgd", rate: float = 0.01):
        self.optimizer, self.rate = optimizer, rate


def build(*words, default=None):
    parser = ArgumentParser()
    parser.add_subclass_arguments(Base, "model")
    if default:
        parser.set_defaults({"model": {"class_path": default}})
    model = parser.instantiate(parser.parse_args(list(words))).model
    return type(model).__name__, model.optimizer, model.rate


alone = build("--model=__main__.FineTuning")
beside = build("--model=__main__.FineTuning", default="__main__.Pretraining")
print("no default class:     ", *alone)
print("Pretraining by default:", *beside)
if alone != ("FineTuning", "sgd", 0.01) or beside != ("FineTuning", "adam", 0.001):
    sys.exit("changed: the class has its own defaults in both cases")
PYTHON
"$folder/venv/bin/python" shown.py
# Seen:
#   no default class:      FineTuning sgd 0.01
#   Pretraining by default: FineTuning adam 0.001
