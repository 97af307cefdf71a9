"""`wallclock serve`: the page follows the folder, and is for this machine alone."""

import http.client
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest

from wallclock.bench.cli.serve import LivePage, server
from wallclock.reports.report import Report
from wallclock.reports.store.schema import Run, Sample
from wallclock.reports.store.write import RunWriter, new_run_id


def begin(folder):
    return RunWriter.create(folder, Run(run_id=new_run_id("r"), started_utc="2026-01-01T00:00:00Z", command="test"))


def sample(value):
    return Sample(benchmark="b", case="the case", metric="latency_s", unit="s", better="lower", value=value)


@pytest.fixture
def serving(tmp_path):
    with server(LivePage([tmp_path]), 0) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()


def get(serving, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", serving.server_port)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_page_follows_a_run_from_before_its_first_record_to_after_its_last(serving, tmp_path):
    versions = [get(serving, "/version")[1]]
    assert "Nothing measured yet" in get(serving, "/")[1]
    writer = begin(tmp_path)
    for value in (1.5, 2.5):
        writer.add(sample(value))
        versions.append(get(serving, "/version")[1])
        status, page = get(serving, "/")
        assert status == 200 and "the case" in page and "running" in page and versions[-1] in page
    writer.finish("done")
    versions.append(get(serving, "/version")[1])
    assert "badge done" in get(serving, "/")[1]
    assert len(set(versions)) == 4


def test_a_page_that_nothing_changed_is_not_built_again(serving, tmp_path, monkeypatch):
    with begin(tmp_path) as writer:
        writer.add(sample(1.0))
    built, build = [], Report.page
    monkeypatch.setattr(Report, "page", lambda *given: (built.append(1), build(*given)))
    first, second = get(serving, "/")[1], get(serving, "/")[1]
    assert first == second and len(built) == 1


def test_only_this_machine_is_answered_and_nothing_but_the_page(serving):
    assert serving.server_address[0] == "127.0.0.1"
    assert get(serving, "/", host="attacker.example")[0] == 403
    assert get(serving, "/", host=f"localhost:{serving.server_port}")[0] == 200
    for path in ("/records.jsonl", "/../etc/passwd", "/%2e%2e/"):
        assert get(serving, path)[0] == 404


def test_a_taken_port_and_a_missing_folder_get_one_line(serving, wallclock, tmp_path):
    code, _, err = wallclock("serve", tmp_path, "--port", serving.server_port)
    assert code == 2 and err.count("\n") == 1 and "choose another with --port" in err
    code, _, err = wallclock("serve", tmp_path / "none")
    assert code == 2 and "no such path" in err
    code, _, err = wallclock("serve", tmp_path, "--port", 70000)
    assert code == 2 and "no such port" in err


def test_the_command_says_where_and_ends_with_ctrl_c(tmp_path):
    command = [sys.executable, "-m", "wallclock", "serve", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = process.stdout.readline().split()[0]
    with urllib.request.urlopen(address) as answer:
        assert b"Nothing measured yet" in answer.read()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 0 and process.stderr.read() == ""


def test_a_page_in_a_browser_takes_in_what_arrives_and_leaves_a_filter_alone(serving, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{serving.server_port}/")
        assert "Nothing measured yet" in page.inner_text("body")
        writer = begin(tmp_path)
        writer.add(sample(1.5))
        page.wait_for_selector("#summary-table >> text=the case")
        page.fill("[data-filter]", "case")
        writer.add(Sample(benchmark="b", case="another", metric="m", unit="s", better="lower", value=1.0))
        page.wait_for_timeout(3000)
        assert page.locator("text=another").count() == 0 and page.input_value("[data-filter]") == "case"
        page.fill("[data-filter]", "")
        page.wait_for_selector("#summary-table >> text=another")
        serving.shutdown()
        serving.server_close()
        page.wait_for_function("document.title.startsWith('[stopped]')")
        browser.close()
