"""Tables in documents are those of the records that their marks name."""

import pytest

from wallclock.reports.docs.doc_tables import refresh, summary

ROW = "| sprint<br>eager<br>cifar10-jpeg | 90% | 4 of 5 |"


def marked(what, below=""):
    return f"Before.\n\n<!-- table: runs; {what} -->\n\n{below}\nAfter.\n"


def test_a_marked_table_is_made_anew_and_nothing_else_is_touched(cifar_root):
    once = refresh(marked("Time to accuracy"), cifar_root.parent)
    assert once.startswith("Before.\n\n<!-- table: runs; Time to accuracy -->\n\n| case | target |")
    assert ROW in once and once.endswith(" |\n\nAfter.\n")
    stale = once.replace("4 of 5", "5 of 5")
    assert stale != once and refresh(stale, cifar_root.parent) == once == refresh(once, cifar_root.parent)
    assert refresh("| a |\n| --- |\n", cifar_root.parent) == "| a |\n| --- |\n"


def test_only_the_cases_wanted_are_shown(cifar_root):
    whole, one = (refresh(marked(f"Other metrics{cases}"), cifar_root.parent) for cases in ("", "; sprint*"))
    assert one == whole.replace("Other metrics", "Other metrics; sprint*")
    with pytest.raises(ValueError, match="no case is called 'wgan"):
        refresh(marked("Other metrics; wgan*"), cifar_root.parent)


def test_a_title_that_is_not_there_is_named_with_those_that_are(cifar_root):
    with pytest.raises(ValueError, match="runs has no table 'Kernels'; tables: Time to accuracy"):
        refresh(marked("Kernels"), cifar_root.parent)


def test_a_summary_holds_the_tables_and_the_machine(cifar_root):
    made = summary(cifar_root)
    assert made.startswith("# runs\n") and ROW in made
    assert "## Where and with what" in made
