"""Names of splits, as people spell them."""

import re

from contrastive.errors import InvalidValue

SPELLINGS = {
    "train": "train|training|trn",
    "validation": "val|valid|validation|validate|validating|dev|devel|development",
    "test": "test|testing|tst|eval|evaluation|holdout|heldout",
}
_AROUND = "images?|imgs?|pictures?|photos?|data|set|split|samples?"


def split_of(name: str) -> str | None:
    """``"train"``, ``"validation"`` or ``"test"`` for a name like ``Train``, ``test_set`` or ``val2017``, else None."""
    letters = re.sub(r"[\W_]|(19|20)\d\d$", "", name.casefold())
    for split, spellings in SPELLINGS.items():
        if re.fullmatch(f"(?:{_AROUND})?(?:{spellings})(?:{_AROUND})?", letters):
            return split
    return None


def by_split(names: list[str], where: str) -> dict[str, str]:
    """Which of several names is that of which split.

    Args:
        names: of folders.
        where: the place, for messages.

    Raises:
        ValueError: if two of them name the same split.
    """
    found: dict[str, str] = {}
    for name in names:
        split = split_of(name)
        if split in found:
            raise InvalidValue(
                f"ImageData finds two folders for the {split} split in {where}: {found[split]} and {name}. Put them "
                "together, or rename one."
            )
        if split is not None:
            found[split] = name
    return found
