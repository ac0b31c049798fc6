"""The report in a browser: nothing in it runs, its search works, it fits the window."""

import base64
import hashlib
import html
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluation.reports import (
    BROKE,
    GAIN,
    HELPED,
    KNOWLEDGE,
    UNSURE,
    Page,
    entries,
    everything,
    evil_rows,
    shown,
    write,
)

CHROMIUM = Path("/usr/bin/chromium")
needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no chromium here")


def chromium(tmp_path: Path, page: Path, *options: str, fragment: str = "") -> str:
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
    return subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--no-first-run"),
            *(f"--disable-{what}" for what in quiet),
            *(f"--user-data-dir={tmp_path / 'profile'}", *options),
            f"{page.as_uri()}#{fragment}",
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout


@needs_chromium
def test_a_browser_shows_the_report_and_runs_nothing_of_it(tmp_path: Path) -> None:
    rows, of = evil_rows()
    write(tmp_path, rows + HELPED, [of, GAIN])
    page = tmp_path / "report.html"
    dom = Page(chromium(tmp_path, page, "--dump-dom"))
    assert dom.tags.count("script") == 1
    assert "<script>alert(1)</script>" in dom.text
    chromium(tmp_path, page, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,900")
    with Image.open(tmp_path / "page.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 100


PWNING = (
    "<script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "<svg onload=\"document.title='pwned'\"></svg>",
    "<details open ontoggle=\"document.title='pwned'\">x</details>",
    "<iframe srcdoc=\"<script>parent.document.title='pwned'</script>\"></iframe>",
    "<meta http-equiv='refresh' content=\"0;url=javascript:document.title='pwned'\">",
    "<a href=\"javascript:document.title='pwned'\">x</a>",
)


@needs_chromium
def test_an_output_that_contains_a_script_does_not_run(tmp_path: Path) -> None:
    attacks = (*PWNING, *(f"</dd></style></script>{attack}" for attack in PWNING))
    rows = entries(
        KNOWLEDGE,
        [1.0] * 40,
        [0.0] * 20 + [1.0] * 20,
        text=lambda what, item: f"{what}{item} {attacks[item % len(attacks)]}",
    )
    write(tmp_path, rows, [KNOWLEDGE])
    dom = chromium(tmp_path, tmp_path / "report.html", "--dump-dom")
    assert "<title>quickstart: FAIL</title>" in dom
    parsed = Page(dom)
    assert parsed.tags.count("script") == 1
    assert {"img", "iframe", "a"}.isdisjoint(parsed.tags)
    assert "<script>document.title='pwned'</script>" in parsed.text


@needs_chromium
def test_the_policy_stops_what_escaping_would_have_let_through(tmp_path: Path) -> None:
    page, _ = write(tmp_path, UNSURE, [KNOWLEDGE])
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content=".*?">', page)
    # Each attack adds its letter to the title; the remaining ones would replace the page.
    attacks = "".join(
        attack.replace("title='pwned'", f"title+='{letter}'")
        for letter, attack in zip("ABCDE", PWNING, strict=False)
    )
    titles = []
    for present in (policy, ""):
        injected = tmp_path / "injected.html"
        changed = page.replace(policy, present).replace("</main>", f"{attacks}</main>")
        injected.write_text(changed, encoding="utf-8")
        dom = chromium(tmp_path, injected, "--dump-dom", "--virtual-time-budget=2000")
        titles += re.findall("<title>(.*?)</title>", dom)[:1]
    guarded, open_to_all = titles
    assert guarded == "quickstart: INCONCLUSIVE"
    # Without the policy all attacks succeed, so it is the policy that stops them.
    assert sorted(open_to_all.removeprefix(guarded)) == [*"ABCDE"]


def test_the_policy_names_the_style_and_the_script_and_nothing_else(tmp_path: Path) -> None:
    page, _ = write(tmp_path, UNSURE, [KNOWLEDGE])
    hashes = []
    for tag in ("style", "script"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        hashes.append(f"{tag}-src 'sha256-{digest}'")
    rest = "base-uri 'none'; form-action 'none'"
    assert f"content=\"default-src 'none'; {'; '.join(hashes)}; {rest}\"" in page


SEARCHES = {
    "": [0, 1, 2, 3, 4, 20, 21, 22],
    "q=PROMPT+of+3": [3],
    "q=item+of+4": [4],
    "q=expected%20of%202": [2, 20, 21, 22],
    "q=adapter+output+of+20": [20],
    "q=base+output+of+3": [3],
    "q=Straße": [0, 2, 4, 20, 22],
    "q=stra%C3%9Fe+21": [],
    "q=%3Cscript%3E": [1, 3, 21],
    "q=reference": [],  # a label of the page, in no item's texts
    "show=won": [20, 21, 22],
    "q=2&show=lost": [2],
    "task=2": [],
    "task=1&show=won&q=22": [22],
    "task=9&show=nonsense": [0, 1, 2, 3, 4, 20, 21, 22],
}


def searched(tmp_path: Path, script: str) -> list[str]:
    """Run a script in a page that embeds the report, and return the texts it passes to `done`.

    `inner` is the window of the report.

    `seen()` are the ids of the items that are not hidden, and the count that is shown.
    """
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<meta charset="utf-8"><iframe src="report.html"></iframe><script>
        const wait = (ms) => new Promise((resume) => setTimeout(resume, ms));
        const done = (texts) => {{ document.title = JSON.stringify(texts); }};
        onload = async () => {{
          const inner = frames[0], page = inner.document;
          const seen = () => [...page.querySelectorAll("details[data-show] li")]
            .filter((item) => !item.closest("[hidden]"))
            .map((item) => item.querySelector("bdi").textContent)
            .concat(page.getElementById("count").value).join(", ");
          {script} }}</script>""",
        encoding="utf-8",
    )
    options = ("--dump-dom", "--allow-file-access-from-files", "--virtual-time-budget=20000")
    dom = chromium(tmp_path, frame, *options)
    (title,) = re.findall("<title>(.*?)</title>", dom)
    return [str(text) for text in json.loads(html.unescape(title))]


@needs_chromium
def test_the_search_shows_what_has_all_words(tmp_path: Path) -> None:
    words = ("in der Straße", "<script>1</script>")
    rows = entries(
        KNOWLEDGE,
        [1.0] * 20 + [0.0] * 3,
        [0.0] * 5 + [1.0] * 18,
        text=lambda what, item: f"{what} of {item}".replace("reference", "expected"),
    )
    rows = [replace(row, slices={"place": words[int(row.item.split()[-1]) % 2]}) for row in rows]
    other = KNOWLEDGE.model_copy(update={"name": "other"})
    write(tmp_path, rows + entries(other, [1.0] * 9, [1.0] * 9), [KNOWLEDGE, other])
    found = searched(
        tmp_path,
        f"const found = []; for (const fragment of {json.dumps([*SEARCHES])})"
        "{ inner.location.hash = fragment; await wait(50); found.push(seen()); } done(found);",
    )
    expected = {
        fragment: [
            *(f"item of {n}" for n in items),
            f"{len(items)} of 8 items" if fragment and "nonsense" not in fragment else "8 items",
        ]
        for fragment, items in SEARCHES.items()
    }
    assert {f: line.split(", ") for f, line in zip(SEARCHES, found, strict=True)} == expected


@needs_chromium
def test_typing_searches_and_the_address_keeps_it(tmp_path: Path) -> None:
    write(tmp_path, BROKE, [KNOWLEDGE])
    found = searched(
        tmp_path,
        """const query = page.getElementById("query");
        const lost = page.querySelector("[data-show=lost]");
        const found = [page.getElementById("search").hidden, lost.open];
        for (const typed of ["item of 17", ""]) {
          query.value = typed;
          query.dispatchEvent(new inner.Event("input", { bubbles: true }));
          await wait(500);
          found.push(inner.location.hash, page.getElementById("count").value, lost.open);
        }
        done(found);""",
    )
    assert found == [
        *("False", "False"),
        *("#q=item+of+17", "1 of 30 items", "True"),
        *("", "30 items", "False"),
    ]


@needs_chromium
def test_a_shared_address_opens_with_its_search(tmp_path: Path) -> None:
    write(tmp_path, BROKE, [KNOWLEDGE])
    dom = chromium(tmp_path, tmp_path / "report.html", "--dump-dom", fragment="q=item+of+17")
    assert shown(dom) == ["item of 17"]
    assert ">1 of 30 items</output>" in dom
    assert '<form id="search" role="search">' in dom


def test_without_scripts_the_page_has_all_items_and_no_search(tmp_path: Path) -> None:
    page, _ = write(tmp_path, BROKE, [KNOWLEDGE])
    assert '<form id="search" role="search" hidden>' in page
    assert len(shown(page)) == 30


@needs_chromium
def test_two_thousand_flips_are_searched_in_a_page_that_stays_small(tmp_path: Path) -> None:
    rows = entries(KNOWLEDGE, [1.0] * 2000, [0.0] * 2000, text=lambda what, n: f"{what} {n} " * 60)
    page, _ = write(tmp_path, rows, [KNOWLEDGE])
    assert len(page) < 8_000_000
    dom = chromium(tmp_path, tmp_path / "report.html", "--dump-dom", fragment="q=1234")
    assert len(shown(dom)) == 1
    assert ">1 of 2000 items</output>" in dom


@needs_chromium
@pytest.mark.parametrize("width", [360, 800, 1200])
def test_the_page_does_not_scroll_sideways(tmp_path: Path, width: int) -> None:
    rows, of = evil_rows()
    more, suites = everything()
    page, _ = write(tmp_path, rows + more, [of, *suites])
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe style="width:{width}px;border:0" srcdoc="{html.escape(page)}" onload="'
        "const e = this.contentDocument.documentElement;"
        "document.title = e.clientWidth > 0 && e.scrollWidth <= e.clientWidth ? 'fits' : 'wide'"
        '"></iframe>',
        encoding="utf-8",
    )
    assert "<title>fits</title>" in chromium(tmp_path, frame, "--dump-dom")
