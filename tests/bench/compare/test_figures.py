"""What a program prints as figures."""

import pytest

from wallclock.bench.compare.figures import read_figures


@pytest.mark.parametrize(
    ("line", "why"),
    [('{"metric": "m", "value": NaN, "unit": "s"}', "finite"), ('{"metric": "m", "value": 1}', "needs a unit"),
     ('{"metric": "m", "value": "1", "unit": "s"}', "finite"),
     ('{"metric": "m", "value": 1' + "0" * 400 + ', "unit": "s"}', "finite"),
     ('{"metric": "process_s", "value": 1, "unit": "s"}', "of that name itself"),
     ('{"metric": "m", "value": 1, "unit": "s", "better": "b"}', "better is")],
)  # fmt: skip
def test_a_figure_that_is_not_whole_is_refused(line, why):
    with pytest.raises(ValueError, match=why):
        list(read_figures(line))


def test_other_lines_are_no_figures():
    assert list(read_figures('{not json\n{"loss": 1}\n[1]\nwords\n')) == []
