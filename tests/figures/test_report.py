"""The report: all in one file, and what a browser makes of it."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from figures.report import make_report
from figures.verdict_tables import verdict_tables
from flatlab.federated.config import make_config
from flatlab.grid.saved_results import read_results
from tests.command_line import SECONDS

Command = Callable[..., int]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

LISTEN = """<script>
window.complaints = [];
addEventListener("error", event => complaints.push(String(event.message || event.target.src)), true);
for (const kind of ["error", "warn"]) console[kind] = (...words) => complaints.push(words.join(" "));
</script>"""

PROBE = """<pre id="probe"></pre><script>
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    const table = page.querySelector("#table-accuracy + .sortable table");
    const column = () => [...table.tBodies[0].rows].map(row => row.cells[3].textContent);
    const sorted = [];
    for (let clicks = 0; clicks < 2; clicks++) {
      table.querySelectorAll("thead button")[3].click();
      sorted.push(column());
    }
    found[frame.width] = {
      complaints: frame.contentWindow.complaints,
      overflow: root.scrollWidth - root.clientWidth,
      images: [...page.images].map(image => image.complete && image.naturalWidth),
      scrolling: [...page.querySelectorAll(".sortable")].filter(box => box.scrollWidth > box.clientWidth).length,
      smallest: Math.min(...[...page.images].map(image => image.clientWidth)),
      sorted: sorted,
      marked: table.querySelectorAll("thead th")[3].getAttribute("aria-sort"),
    };
  }
  document.getElementById("probe").textContent = JSON.stringify(found);
});
</script>"""


@pytest.fixture(scope="module")
def page(flatlab: Command, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a grid with a failed cell and one that is not begun."""
    results = tmp_path_factory.mktemp("reported") / "results"
    shutil.copytree(finished, results)
    for path in (results / "fedsam-iid-s2").glob("final.*"):
        path.unlink()
    (results / "fedsam-iid-s2" / "failure.txt").write_text("Training diverged <here>.\n\nTraceback ...\n")
    shutil.rmtree(results / "fedsam-man-iid-s2")
    assert flatlab("report", str(results), "--json", str(results / "made.json")) == 0
    assert json.loads((results / "made.json").read_text())["report"] == str(results / "report.html")
    return (results / "report.html").read_text()


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "<link" not in page
    assert "@import" not in page


def test_the_page_says_what_was_found_what_failed_and_how_to_make_it_again(page: str) -> None:
    assert "<h1>Made-up &lt;numbers&gt; &amp; more</h1>" in page
    assert "28 of 30 runs finished" in page
    assert "Test accuracy after the last round, %: higher with MAN in 4, lower in 0, undecided in 0 of 4 rows" in page
    assert "<b>fedsam-iid-s2</b>: Training diverged &lt;here&gt;." in page
    assert "<b>fedsam-man-iid-s2</b>: not begun." in page
    assert re.search(r"flatlab reproduce (\S+)/grid.toml --out \1\n?<", page)
    assert "flatlab eigs again/RUN/final.pt --samples 500\n" in page
    assert "flatlab density again/RUN/final.pt --samples 500 --depth 40 --probes 5\n" in page
    assert "algorithm = &#34;fedsam&#34;" in page


def test_every_line_names_the_users_code_that_its_run_needs(finished: Path) -> None:
    own: list[dict[str, str]] = [{"model": f"mine:net{number}"} for number in range(4)]
    own += [{"dataset": "mine:data", "algorithm": "mine:A", "model": "mine:net0"}]
    results = read_results(finished)
    runs = [
        replace(run, config=make_config(run.config.plain() | fields))
        for run, fields in zip(results.runs[:6], [*own, {}], strict=True)
    ]
    lines = unescape(make_report(replace(results, runs=tuple(runs)), [], {}, {})).splitlines()
    train = [line.partition("again/RUN")[2] for line in lines if "flatlab train" in line]
    measure = [line.partition("--samples 500")[2] for line in lines if "flatlab eigs" in line]
    named = [f" --model mine:net{number}" for number in range(4)]
    assert train == ["", named[0], f"{named[0]} --dataset mine:data --algorithm mine:A", *named[1:]]
    assert measure == ["", named[0], f"{named[0]} --dataset mine:data", *named[1:]]
    everything = next(line for line in lines if "flatlab reproduce" in line)
    assert everything.endswith("".join([*named, " --dataset mine:data", " --algorithm mine:A</pre>"]))


def test_verdicts_are_read_where_verify_left_them(results: Path) -> None:
    claim = {"quantity": "trace", "direction": "lower", "ratio": True}
    comparison = {"setting": "ζ 0.15", "pairs": 3, "effect": 0.6, "low": 0.5, "high": 0.7, "p": 0.01, "p_holm": 0.02}
    group = json.dumps({"dataset": "cifar100", "algorithm": "fedavg", "partition": "dirichlet", "delta": 0.3})
    verdict: dict[str, Any] = {"claim": claim, "group": group, "contrast": "MAN", "answer": "supported"}
    one_pair = {**comparison, "setting": "ζ 0.5", "pairs": 1, "effect": 0.7, "low": None, "high": None}
    verdict["comparisons"] = [{**comparison, "answer": "supported"}, {**one_pair, "answer": "undecided"}]
    (results / "study.json").write_text(json.dumps({"verdicts": [verdict]}))
    checks = [{"statement": "S1", "claimed": False, "outcome": outcome} for outcome in ("holds", "fails", "fails")]
    (results / "fedavg-iid-s0" / "final.verify.json").write_text(json.dumps({"checks": checks}))
    (claims, statements), skipped = verdict_tables(read_results(results))
    assert not skipped
    page = make_report(read_results(results), [], {}, {})
    assert "Does MAN do what is claimed?" in page
    assert claims.rows == (
        (
            "MAN",
            "trace lower",
            "cifar100, fedavg, Dirichlet 0.3",
            "ζ 0.15",
            "3",
            "0.60 [0.50, 0.70]",
            "supported",
            "supported",
        ),
        ("MAN", "trace lower", "cifar100, fedavg, Dirichlet 0.3", "ζ 0.5", "1", "0.70", "undecided", "supported"),
    )
    assert statements.rows[0][0] == "S1"
    assert statements.rows[0][2:] == ("1", "0", "2")


def test_groups_of_a_study_are_told_apart_and_statements_on_unlike_samples_are_not_counted_together(
    results: Path,
) -> None:
    verdicts = []
    for fields in ({"rounds": 60, "lr": 0.1}, {"rounds": 5, "lr": 0.1}):
        run = {"dataset": "digits", "algorithm": "fedavg", "partition": "iid", "delta": 0.3, **fields}
        claim = {"quantity": "trace", "direction": "lower", "ratio": True}
        comparison = {"setting": "ζ 0.15", "pairs": 3, "answer": "undecided"}
        verdict: dict[str, Any] = {"claim": claim, "group": json.dumps(run), "contrast": "MAN", "answer": "undecided"}
        verdicts.append({**verdict, "comparisons": [comparison]})
    (results / "study.json").write_text(json.dumps({"verdicts": verdicts}))
    for name, samples in (("fedavg-iid-s0", 200), ("fedavg-iid-s1", 500)):
        checks = [{"statement": "S1", "claimed": True, "outcome": "holds"}]
        content = {"checks": checks, "settings": {"samples": samples}}
        (results / name / "final.verify.json").write_text(json.dumps(content))
    (claims,), skipped = verdict_tables(read_results(results))
    assert [row[2] for row in claims.rows] == ["digits, fedavg, IID, rounds 60", "digits, fedavg, IID, rounds 5"]
    assert "fedavg-iid-s0 was made with samples 200, final.verify.json of fedavg-iid-s1" in skipped["statements"]
    assert "<b>table statements</b>: final.verify.json of" in make_report(read_results(results), [], {}, {})


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here to open the page in")
def test_a_browser_opens_it_without_complaint_at_two_widths(page: str, tmp_path: Path) -> None:
    listening = page.replace("<head>", "<head>" + LISTEN, 1)
    frames = [f'<iframe width="{width}" height="900" srcdoc="{escape(listening)}"></iframe>' for width in (380, 1400)]
    (tmp_path / "probe.html").write_text(f"<!doctype html><body>{''.join(frames)}{PROBE}</body>")
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    opened = subprocess.run(
        [str(CHROMIUM), *words, "--virtual-time-budget=10000", "--dump-dom", (tmp_path / "probe.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', opened.stdout, re.DOTALL)
    assert found, opened.stdout[-2000:]
    for seen in json.loads(found[1]).values():
        assert seen["complaints"] == []
        assert seen["overflow"] <= 0
        assert seen["scrolling"] == 0
        assert len(seen["images"]) == 8
        assert all(width > 600 for width in seen["images"])
        assert seen["smallest"] > 300
        ascending, descending = ([float(cell.split()[0]) for cell in column] for column in seen["sorted"])
        assert ascending == sorted(ascending)
        assert descending == sorted(ascending, reverse=True)
        assert len(set(ascending)) > 1
        assert seen["marked"] == "descending"


@pytest.mark.long
def test_results_that_can_only_be_read_are_reported_elsewhere(
    results: Path, flatlab: Command, tmp_path: Path, capsys: Any
) -> None:
    (results / "figures").touch()  # in the place of the folder, as nothing can be written on a mount that is read
    before = sorted(path.relative_to(results) for path in results.rglob("*"))
    assert flatlab("report", str(results)) == 1
    assert flatlab("report", str(results), "--out", str(tmp_path / "page.html")) == 0
    assert "takes no files: its tables and figures are on the page alone" in capsys.readouterr().err
    assert "<table" in (tmp_path / "page.html").read_text()
    assert sorted(path.relative_to(results) for path in results.rglob("*")) == before
