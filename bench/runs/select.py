"""The choices of `--only`: each use of the option adds everything to which all its words apply."""

from collections.abc import Collection


def chosen_texts(only: Collection[str] | None) -> tuple[str, ...]:
    """Returns the texts that `--only` was given, with single spaces between their words.

    Raises:
        ValueError: if a text holds no word.
    """
    texts = tuple(" ".join(text.split()) for text in only or ())
    if "" in texts:
        raise ValueError("--only holds no word; give some, such as --only 'residual darknet', or leave it out for all")
    return texts


def is_chosen(names: Collection[str], only: Collection[str]) -> bool:
    """Says whether `--only` chooses a thing that goes by some names.

    Args:
        names: words that the thing goes by.
        only: texts, one of which must consist of such words alone; without any text everything is chosen.
    """
    return not only or any(set(text.split()) <= set(names) for text in only)
