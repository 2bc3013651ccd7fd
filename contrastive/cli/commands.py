"""The commands beside training: each is a function of the library with a parser made from its signature."""

import ast
import inspect
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import contrastive
from contrastive.cli import PLAIN_COMMANDS
from contrastive.cli.errors import ShortErrors
from contrastive.cli.request import shipped_configurations
from contrastive.errors import InvalidValue

TRUST = (
    "build classes that belong neither to contrastive nor to recsys, if the run names them; they can run any code, so "
    "only for a run whose author you trust"
)


def run_command(command: str, words: Sequence[str]) -> int:
    """Parse ``words`` for a command, run it, and return its exit code."""
    function, show = COMMANDS[command]()
    parser = ShortErrors(
        prog=f"contrastive {command}", description=PLAIN_COMMANDS[command], allow_abbrev=False
    )
    if isinstance(function, type):
        parser.add_class_arguments(function, as_group=False)
    else:
        parser.add_function_arguments(function, skip={"data", "trust"}, as_group=False)
    trusts = "trust" in inspect.signature(function).parameters
    if trusts:
        parser.add_argument("--trust_run", action="store_true", help=TRUST)
    filters = "filter" in inspect.signature(function).parameters
    rest, conditions = _without_filter(words) if filters else (list(words), None)
    try:
        arguments = parser.parse_args(_with_lists(rest, function))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    options = arguments.as_dict()
    if conditions is not None:
        options["filter"] = conditions
    if trusts:
        options["trust"] = options.pop("trust_run")
    return show(function(**options)) or 0


def _without_filter(words: Sequence[str]) -> tuple[list[str], dict[str, Any] | None]:
    """The words without ``--filter``, and its conditions: the parser would take texts for the numbers in them.

    ``{"from": low, "to": high}``, either of which may be left out, is a range.

    Raises:
        ValueError: what was given is no JSON object, or a condition is none.
    """
    rest, text, following = [], None, False
    for word in words:
        option, equals, value = word.partition("=")
        if following:
            text, following = word, False
        elif option == "--filter":
            text, following = (value, False) if equals else (None, True)
        else:
            rest.append(word)
    if text is None:
        return list(words), None
    from contrastive.checks import shown  # here, as it imports torch, which help does without

    expected = """give JSON, as '{"class": "7", "year": {"from": 1990, "to": 2000}}'."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as problem:  # RecursionError: thousands of brackets
        raise InvalidValue(f"--filter is {shown(text)} ({problem}); {expected}") from problem
    if not isinstance(given, dict):
        raise InvalidValue(f"--filter is {shown(text)}; {expected}")
    conditions = {}
    for column, wanted in given.items():
        if isinstance(wanted, dict):
            if not wanted or wanted.keys() - {"from", "to"}:
                raise InvalidValue(
                    f"--filter has {shown(wanted)} for {column!r}; a range has from, to or both: {expected}"
                )
            wanted = slice(wanted.get("from"), wanted.get("to"))
        conditions[column] = wanted
    return rest, conditions


def _with_lists(words: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """``--history a b`` as ``--history ["a", "b"]``, which the parser takes, for options that are lists of words."""
    parameters = inspect.signature(function).parameters.values()
    lists = {f"--{one.name}" for one in parameters if "list[str]" in str(one.annotation)}
    gathered: list[str] = []
    values: list[str] | None = None
    for word in (*words, "--"):
        if values is not None and not word.startswith("--"):
            values.append(word)
            continue
        if values is not None:
            gathered.append(values[0] if values and values[0].startswith("[") else json.dumps(values))
        values = [] if word in lists else None
        gathered.append(word)
    return gathered[:-1]


def _probe() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    from contrastive.evaluation import probe_run

    return probe_run, _print_accuracy


def _knn() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    from contrastive.evaluation import knn_run

    return knn_run, _print_accuracy


def _evaluate() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    from contrastive.evaluation import evaluate_run

    return evaluate_run, lambda document: None  # it prints its table


def _few_shot() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    from contrastive.evaluation import few_shot_run

    return few_shot_run, lambda document: None  # it prints its table


def _embed() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    from contrastive.retrieval import write_embeddings

    return write_embeddings, lambda embeddings: None  # it prints its progress


def _index() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    from contrastive.retrieval import build_index

    return build_index, lambda index: None  # it prints a summary


def _search() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    from contrastive.retrieval import search_index
    from contrastive.retrieval.run import format_neighbours

    return search_index, lambda found: print(format_neighbours(found))


def _recommend() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    from contrastive.retrieval.run import format_neighbours
    from recsys.recommend import recommend_items

    return recommend_items, lambda found: print(format_neighbours(found))


def _explore() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    def explore(
        index: str,
        other: str | None = None,
        run: str | None = None,
        host: str = "127.0.0.1",
        port: int = 8765,
        open_browser: bool = False,
        trust: bool = False,
    ) -> None:
        """Serve a page over a saved index until interrupted.

        Args:
            index: folder of the index.
            other: folder of a second one, whose neighbours of the same ids are shown beside.
            run: folder of the run that encoded the first; images can then be uploaded.
            host: address to be reached at.
            port: port there; 0 takes a free one.
            open_browser: open the page.
            trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
                author you trust.
        """
        from contrastive.retrieval.explorer import explore as serve

        serve(index, other, run, host, port, open_browser, trust)

    return explore, lambda nothing: None


def _export() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    from contrastive.encoders.export import export_encoder

    return export_encoder, print


def _report() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    from contrastive.evaluation.report import write_report

    def report(run: str, max_images: int = 2000, seed: int = 0, trust: bool = False) -> Path:
        """Write the report of a run.

        Args:
            run: folder of the run.
            max_images: test images to take through the encoder at most.
            seed: seed of that sample, of the views and of the map.
            trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
                author you trust.
        """
        return write_report(run, max_images=max_images, seed=seed, trust=trust)

    return report, print


def _check_data() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    from contrastive.data import ImageData, check_data

    def show(data: ImageData) -> int:
        report = check_data(data)
        print(report)
        return 0 if report.ok else 1

    return ImageData, show


def _list() -> tuple[Callable[..., Any], Callable[[Any], int | None]]:
    return public_classes, print


COMMANDS = {
    "probe": _probe,
    "knn": _knn,
    "evaluate": _evaluate,
    "few-shot": _few_shot,
    "embed": _embed,
    "index": _index,
    "search": _search,
    "recommend": _recommend,
    "explore": _explore,
    "export": _export,
    "report": _report,
    "check-data": _check_data,
    "list": _list,
}


def _print_accuracy(document: dict[str, Any]) -> None:
    for name, value in document["metrics"].items():
        if isinstance(value, float):
            print(f"{name:<24}{value:.4f}")


# ---------------------------------------------------------------------- list

# Package -> base classes that its choices have by name; none means all public classes but those of NOT_TO_CHOOSE.
PACKAGES: dict[str, set[str]] = {
    "objectives": set(),
    "encoders": set(),
    "views": set(),
    "data": set(),
    "training": {"LightningModule", "Pretrain"},
}
# What the data offer -> the objectives for it, the one to start with first. docs/objectives.md says more.
GUIDE = {
    "views of samples": ("InfoNCE", "HardInfoNCE"),
    "... in small batches": ("SogCLR",),
    "... of rare and frequent kinds": ("ISogCLR", "CACR"),
    "... three views and more": ("CACR", "GroCo"),
    "... for few-shot classes": ("BECLR", "NNCLR"),
    "... and their labels": ("SupCon", "Hydra"),
    "pairs, as image and text": ("InfoNCE(negatives=cross)", "ISogCLR(negatives=cross)"),
    "background and target samples": ("SepCLR",),
    "... and attributes, own loop": ("SupervisedSepCLR",),
    "labels, and a trained encoder": ("CoreTuning", "CrossEntropy"),
}
# Base class of what a recommender is made of -> what it is.
RECOMMENDER_PARTS = {
    "LightningModule": "model",
    "LightningDataModule": "data",
    "SequenceEncoder": "encoder",
    "nn.Module": "loss",
    "Head": "head",
}
NOT_TO_CHOOSE = {"Objective", "Views", "Recipe", "Batch", "Loader", "DataReport"}


def public_classes(
    kind: Literal[
        "all", "objectives", "encoders", "views", "data", "training", "recommenders", "configs"
    ] = "all",
) -> str:
    """Return what can be named in a configuration, with a line on each; reads the source and imports nothing.

    Args:
        kind: what to list.
    """
    lines = []
    for package in PACKAGES if kind == "all" else {kind} & PACKAGES.keys():
        lines += [f"{package}:", *(f"  {name:<20}{about}" for name, about in _classes_of(package)), ""]
        if package == "objectives":
            lines += ["which objective (* to start with):"]
            lines += [f"  {data:<34}* {', '.join(names)}" for data, names in GUIDE.items()] + [""]
    if kind in ("all", "data"):
        lines.append(
            "sources of ImageData: digits, a torchvision data set (CIFAR10, ...), a folder of images or of Parquet "
            "files, a .parquet file, a list of files (.csv, .tsv, .txt)"
        )
        lines.append("")
    if kind in ("all", "recommenders"):
        lines += ["recommenders (--config recsys/quickstart):"]
        lines += [f"  {name:<29}{part}: {about}" for part, name, about in _recommender_parts()]
        lines += [
            "sources of recsys.RecommenderData: synthetic, a table (.csv, .tsv, .parquet, .inter) or a folder of them, "
            "lines of a user and items (.txt, .seq.tsv)",
            "",
        ]
    if kind in ("all", "configs"):
        lines.append(f"configurations, for --config: {', '.join(shipped_configurations())}")
    return "\n".join(lines).rstrip()


def _classes_of(package: str) -> Iterator[tuple[str, str]]:
    folder = Path(contrastive.__file__).parent / package
    public = _assigned(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")), "__all__")
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef) or node.name not in public or node.name in NOT_TO_CHOOSE:
                continue
            if not PACKAGES[package] or PACKAGES[package] & {ast.unparse(base) for base in node.bases}:
                about = (ast.get_docstring(node) or "").split("\n")[0]
                needs = ", ".join(name for name in _assigned(node, "requires") if name != "index")
                yield node.name, f"{about} Needs {needs}." if needs else about


def _recommender_parts() -> list[tuple[str, str, str]]:
    """What each public class of recsys is, its name, and a line on it, by parts; the package is not imported."""
    spec = find_spec("recsys")
    if spec is None or spec.origin is None:
        return []
    entry = Path(spec.origin)
    public = _assigned(ast.parse(entry.read_text(encoding="utf-8")), "_PUBLIC")
    order = list(RECOMMENDER_PARTS.values())
    found = []
    for path in sorted(entry.parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            part = next((RECOMMENDER_PARTS[base] for base in bases if base in RECOMMENDER_PARTS), None)
            if isinstance(node, ast.ClassDef) and part is not None and node.name in public:
                about = (ast.get_docstring(node) or "").split("\n")[0]
                found.append((part, f"recsys.{node.name}", about))
    return sorted(found, key=lambda one: (order.index(one[0]), one[1]))


def _assigned(scope: ast.Module | ast.ClassDef, name: str) -> Collection[str]:
    """The literal that ``scope`` assigns to ``name``; nothing if there is none."""
    for node in scope.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in node.targets
        ):
            found: Collection[str] = ast.literal_eval(node.value)
            return found
    return ()
