"""What a project declares is checked whole, in one place."""

import re

import pytest

from wallclock.bench.compare.benchmarks import Benchmark, Settings, parse_settings

DECLARED = "[tool.wallclock.benchmarks.a]\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[tool", "here: "),
        ("tool = 3", "tool is 3; expected a table"),
        ("[tool.wallclock]\ntolerance = '2%'", "tolerance is '2%'; expected a share below 1, such as 0.05 for 5%"),
        ("[tool.wallclock.benchmark.a]\ncommand = 'x'", "no key 'benchmark'; did you mean 'benchmarks'?"),
        ("[[tool.wallclock.benchmarks]]\nname = 'a'", "expected tables [tool.wallclock.benchmarks.NAME]"),
        ("[tool.wallclock]\nbenchmarks.a = 'x'", "benchmark 'a' is 'x'; expected a table"),
        (DECLARED + "comand = 'x'", "no key 'comand'; did you mean 'command'?"),
        (DECLARED + "command = 'x'\ntolerence = 0.05", "did you mean 'tolerance'?"),
        (DECLARED + "build = 'x'", "benchmark 'a' has no command"),
        (DECLARED + "command = 'x'\npytest = 'tests'", "and not both"),
        (DECLARED + "pytest = ['tests']", "expected a path of tests"),
        (DECLARED + "command = ['python', 'train.py']", "expected a shell command"),
        (DECLARED + "command = ' '", "expected a shell command"),
        (DECLARED + "command = 'x'\nbuild = ['make', 'all']", "expected a shell command"),
        (DECLARED + "command = 'x'\ntolerance = '5%'", "tolerance is '5%'; expected a share"),
        (DECLARED + "command = 'x'\ntolerance = '0.05'", "tolerance is '0.05'; expected a share"),
        (DECLARED + "command = 'x'\ntolerance = true", "tolerance is True"),
        (DECLARED + "command = 'x'\ntolerance = nan", "tolerance is nan"),
        (DECLARED + "command = 'x'\nsources = 'a.py'", "sources is 'a.py'; expected a list of patterns"),
        (DECLARED + "command = 'x'\nsources = [3]", "expected a list of patterns"),
        (DECLARED + "command = 'x'\nmetrics = 'step_s'", "expected a list of names"),
        (DECLARED + "command = 'x'\ntimeout_s = '2'", "expected a number of seconds"),
        (DECLARED + "command = 'x'\ntimeout_s = 0", "expected a number of seconds"),
        (DECLARED + "command = 'x'\ncounted = 'often'", "one of callgrind, printed, never"),
        (DECLARED + "command = 'x'\ncounted = ['never']", "one of callgrind, printed, never"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_in_one_line(text, why):
    with pytest.raises(ValueError, match=re.escape(why)) as refused:
        parse_settings(text, "here")
    assert str(refused.value).startswith("here") and "\n" not in str(refused.value)


def test_a_declaration_is_read_whole():
    found = parse_settings(
        "[tool.wallclock]\ntolerance = 0\n" + DECLARED + "command = 'x'\nmetrics = ['m']\ntimeout_s = 5", "here"
    )
    assert found.tolerance == 0 and found.named("a") == Benchmark(
        name="a", command="x", metrics=("m",), timeout_s=5, tolerance=None
    )
    assert parse_settings("[tool.other]\nx = 1", "here") == Settings()
