"""What `--only` chooses: each time it is given it names more, by words that must all apply."""

from collections.abc import Collection


def chosen_texts(only: Collection[str] | None) -> tuple[str, ...]:
    """Returns what `--only` was given, each text by its words.

    Raises:
        ValueError: if one holds no word.
    """
    texts = tuple(" ".join(text.split()) for text in only or ())
    if "" in texts:
        raise ValueError("--only holds no word; give some, such as --only 'residual darknet', or leave it out for all")
    return texts


def is_chosen(names: Collection[str], only: Collection[str]) -> bool:
    """Says whether something is asked for.

    Args:
        names: words that it goes by.
        only: texts of which one must hold nothing but such words; none asks for everything.
    """
    return not only or any(set(text.split()) <= set(names) for text in only)
