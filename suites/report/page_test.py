"""report.html of passing, failing, crashed, undecided, large and hostile reports: its elements, and
where Chromium is found its pixels. ctest: `self_report_page`.

With DSV32_UPDATE_SAMPLES=1 the samples in docs/ are written again.
"""

from __future__ import annotations

import functools
import json
import os
import re
import unittest
from pathlib import Path

import numpy as np
from page import Element, Sheet, browser, can_print, parse, printed, screenshot
from program import NOTHING, OK, PARITY, ROOT, clean_up, run, scratch, variant
from program import make_good as make_good_trace
from safetensors.numpy import load_file

PARTS = ["defects", "where", "looks", "decisions", "gradients", "training", "untested", "judged",
         "numbers"]
TAGS = set(
    "html head meta title style body main header section h1 h2 h3 p b br code pre span article ul "
    "ol li dl dt dd div figure figcaption svg g rect path polyline polygon text table thead tbody "
    "tr th td sup details summary".split()
)
LARGEST = 1 << 20
SAMPLE, COMMENT = ROOT / "docs" / "sample-report.html", ROOT / "docs" / "sample-comment.md"
HOSTILE = (
    "\x1b[31mRED\x1b[0m\r\n\n<script>alert(1)</script><img src=x onerror=alert(1)>]]>&lt;\u202e"
    "\x07\x9b31m</style></title>\"'`javascript:alert(1)"
)
pages: dict[str, Path] = {}  # by kind


def judged(kind: str, *words: object, code: int) -> None:
    folder = scratch / kind
    done = run(*words, "--out", folder)
    assert done.returncode == code, (kind, done.stdout[-2000:], done.stderr[-2000:])
    pages[kind] = folder / "report.html"


def rendered(kind: str, report: dict) -> None:
    path = scratch / f"{kind}.json"
    path.write_text(json.dumps(report))
    pages[kind] = scratch / f"{kind}.html"
    done = run("report", "render", path, "--html", pages[kind])
    assert done.returncode == OK, done.stderr


def of(kind: str) -> dict:
    return json.loads((pages[kind].parent / "report.json").read_text())


def recounted(report: dict) -> dict:
    """With the counts and the exit code that its verdicts give."""
    counts = dict.fromkeys(report["counts"], 0)
    for verdict in report["verdicts"]:
        counts[verdict["trust"]] += 1
    return report | {"counts": counts, "exit_code": 1 if counts["fail"] else 0}


def three_defects() -> None:
    """Another eps in the indexer's norm, another fill of excluded groups, scaled logits."""
    path = scratch / "fork-test.safetensors"
    words = ("--impl", "reference", "--dialect", "fork-test", "--case", "tiny-bias", "--mode",
             "backward", "--out", path)
    assert run("dump", *words).returncode == OK
    judged("two", "--candidate", path, code=PARITY)
    values = load_file(path)
    values["logits"] = values["logits"] * np.float32(1.5)
    judged("three", "--candidate", variant_of(path, "three-bugs", values), code=PARITY)


def variant_of(path: Path, name: str, values: dict[str, np.ndarray]) -> Path:
    from program import metadata_of
    from safetensors.numpy import save_file

    out = scratch / f"{name}.safetensors"
    save_file(values, out, metadata_of(path))
    return out


def crash() -> None:
    values = {k: v for k, v in load_file(scratch / "good.safetensors").items()
              if k in ("embed", "layers.0.attn_norm", "layers.0.q_latent", "layers.0.kv_latent")}
    failure = {"where": "model.layers.0.self_attn.indexer", "phase": "forward", "shapes": [],
               "message": "RuntimeError: selected index k out of range",
               "raised_at": "site-packages/transformers/modeling_deepseek_v32.py:241"}
    judged("crash", "--candidate", variant("crashed", values, failure=json.dumps(failure)),
           code=PARITY)


def undecided() -> None:
    """No decisions in the file, and more rounding than float32 has."""
    values = {k: v for k, v in load_file(scratch / "good.safetensors").items() if k == "logits"}
    judged("weak", "--candidate", variant("weak", values), code=OK)
    report = of("weak")
    for verdict in report["verdicts"]:
        if verdict["tap"] == "logits" and verdict["subject"]["party"] == "candidate":
            verdict["trust"] = "undecided"
    rendered("undecided", recounted(report) | {"exit_code": NOTHING})


def sixty_one_layers() -> None:
    report = of("two")
    verdicts = [v for v in report["verdicts"] if v["subject"]["party"] == "candidate"]
    more = []
    for verdict in verdicts:
        if verdict["layer"] == 1:
            tap = verdict["tap"]
            more += [verdict | {"layer": n, "tap": tap.replace("layers.1", f"layers.{n}")}
                     for n in range(2, 61)]
    rendered("large", recounted(report | {"verdicts": report["verdicts"] + more}))


def training() -> None:
    report = of("good")
    verdict = report["verdicts"][0] | {
        "suite": "loss_descent", "tap": "curve.loss", "mode": "free", "layer": None,
        "curve": {"values": [5.0, 4.2, 3.9], "expected": [5.0, 4.2, 3.8],
                  "low": [4.9, 4.1, 3.7], "high": [5.1, 4.3, 4.0]}}
    rendered("training", recounted(report | {"verdicts": [*report["verdicts"], verdict]}))


def hostile() -> None:
    report = of("two")
    for verdict in report["verdicts"][-200:]:
        verdict |= {"tap": HOSTILE, "note": HOSTILE, "structure": HOSTILE}
    for entry in [*report["verdicts"], *report["findings"], *report["judged"]]:
        entry["case"] = entry["subject"]["label"] = HOSTILE
    for finding in report["findings"]:
        finding |= {"headline": HOSTILE, "causes": [HOSTILE], "profile": HOSTILE}
        for defect in finding["defects"]:
            defect |= {"words": HOSTILE, "evidence": HOSTILE, "name": HOSTILE, "taps": [HOSTILE]}
    report |= {"command": HOSTILE, "environment": {HOSTILE: HOSTILE}, "warnings": [HOSTILE],
               "not_tested": [HOSTILE], "tool_version": HOSTILE}
    for entry in report["judged"]:
        entry["facts"] = {HOSTILE: HOSTILE}
    rendered("hostile", report)


def sample() -> None:
    """A fork with two defects; without the paths and the commit of this machine."""
    path = scratch / "fork.safetensors"
    (scratch / "fork-test.safetensors").rename(path)
    judged("sample-run", "--candidate", path, "-k", "candidate", "--suite", "forward", code=PARITY)
    report = of("sample-run")
    report["command"] = "dsv32-verify --candidate fork.safetensors"
    report["environment"] |= {"data": "golden/data", "commit": "0123456789ab"}
    rendered("sample", report)
    words = ("--md", scratch / "sample.md", "--link", "sample-report.html")
    assert run("report", "render", scratch / "sample.json", *words).returncode == OK
    if os.environ.get("DSV32_UPDATE_SAMPLES"):
        SAMPLE.write_text(pages["sample"].read_text())
        COMMENT.write_text((scratch / "sample.md").read_text())


def setUpModule() -> None:
    make_good_trace()
    judged("good", "--candidate", scratch / "good.safetensors", code=OK)
    three_defects()
    crash()
    undecided()
    sixty_one_layers()
    training()
    hostile()
    sample()


tearDownModule = clean_up


def page(kind: str) -> Element:
    return parse(pages[kind].read_text())


def part(kind: str, name: str) -> Element:
    found = [e for e in page(kind).all("section") if e.attributes["id"] == name]
    return found[0] if found else Element("", {})


class Everywhere(unittest.TestCase):
    def test_one_file_without_script_or_resource(self) -> None:
        for kind, path in pages.items():
            with self.subTest(kind):
                self.assertLess(path.stat().st_size, LARGEST)
                for element in page(kind).walk()[1:]:
                    self.assertIn(element.tag, TAGS)
                    for name, value in element.attributes.items():
                        self.assertFalse(name.startswith("on") or name in ("src", "href", "style"),
                                         f"{name}={value}")
                style = page(kind).all("style")
                self.assertEqual(len(style), 1)
                self.assertNotRegex(style[0].text(), r"url\(|@import|@font-face")

    def test_parts_stand_in_order(self) -> None:
        for kind in pages:
            with self.subTest(kind):
                ids = [e.attributes["id"] for e in page(kind).all("section")]
                self.assertEqual(ids, [name for name in PARTS if name in ids])
                self.assertEqual(len(page(kind).all("h1")), 1)

    def test_nothing_foreign_steers_anything(self) -> None:
        text = pages["hostile"].read_text()
        self.assertNotRegex(text, "[\x00-\x09\x0b-\x1f\x7f\x80-\x9f\u202e]")
        self.assertNotIn("<script", text)
        self.assertIn("&lt;script&gt;alert(1)", text)

    def test_terms_stand_where_they_are_used(self) -> None:
        for name in ("defects", "where", "looks", "decisions", "gradients"):
            self.assertTrue(part("three", name).all("p", "remark"), name)
        self.assertTrue(part("crash", "untested").all("p", "remark"))


class Verdicts(unittest.TestCase):
    def test_one_sentence(self) -> None:
        for kind, look, word, words in (
            ("good", "pass", "PASS", "computes the model"),
            ("two", "fail", "FAIL", "is wrong in 2 ways, the gravest: excluded groups filled"),
            ("crash", "fail", "FAIL", "crashed in model.layers.0.self_attn.indexer: RuntimeError: "
             "selected index k out of range, at modeling_deepseek_v32.py:241; 4 taps before it are "
             "right"),
            ("undecided", "open", "NOT GREEN", "It cannot be told whether"),
        ):
            with self.subTest(kind):
                header = page(kind).all("header")[0]
                self.assertEqual(header.attributes["class"], look)
                self.assertEqual(header.all("p", "word")[0].text(), word)
                self.assertIn(words, header.all("h1")[0].text())

    def test_each_defect_has_words_severity_and_a_line_to_see_it_again(self) -> None:
        articles = part("three", "defects").all("article", "defect")
        self.assertGreaterEqual(len(articles), 3)
        for article in articles[:3]:
            self.assertTrue(article.all("h3")[0].text())
            self.assertTrue(article.all("p", "grave")[0].text())
            self.assertTrue(article.all("pre")[0].text().startswith("dsv32-verify --candidate"))
        words = " ".join(a.text() for a in articles)
        for known in ("group-fill-zero", "k-norm-eps", "logits"):
            self.assertIn(known, words)

    def test_what_was_judged(self) -> None:
        text = part("good", "judged").text()
        for word in ("sha256", "dtype", "implementation", "commit", "arithmetic", "transformers"):
            self.assertIn(word, text)

    def test_a_crash_lists_unreached_taps_once(self) -> None:
        items = [e.text() for e in part("crash", "untested").all("li") if "crash" in e.text()]
        self.assertEqual(len(items), 1)
        self.assertIn("never reached: it crashed before", items[0])


class Pictures(unittest.TestCase):
    def titles(self, kind: str, name: str, look: str) -> list[str]:
        found = []
        for svg in part(kind, name).all("svg"):
            cells = [c for c in svg.children if isinstance(c, Element)]
            for cell, after in zip(cells, [*cells[1:], Element("", {})], strict=True):
                if look == "origin" and after.attributes.get("class") == "origin":
                    found.append(cell.text())
                elif look in (cell.attributes.get("class") or "").split():
                    found.append(cell.text())
        return found

    def test_origins_are_outlined_and_the_inherited_pale(self) -> None:
        origins = self.titles("two", "where", "origin")
        self.assertTrue(any(t.startswith("layers.0.ix.k (staged): fail, ") for t in origins))
        self.assertTrue(any("router.experts" in t for t in origins))
        for title in self.titles("two", "where", "pale"):
            self.assertIn(": fail", title)

    def test_a_map_for_each_mode(self) -> None:
        captions = [e.text() for e in part("two", "where").all("figcaption")]
        for mode in ("staged", "forced"):
            self.assertIn(mode, captions)

    def test_the_first_three_defects_are_drawn(self) -> None:
        looks = part("three", "looks").all("figure", "look")
        self.assertGreaterEqual(len(looks), 2)
        for look in looks:
            self.assertTrue([p for p in look.all("path") if re.fullmatch(
                r"s[2-9]", p.attributes.get("class") or "")])

    def test_every_layer_has_its_column(self) -> None:
        labels = {e.text() for e in part("large", "where").all("text")}
        self.assertTrue({"0", "10", "60"} <= labels)

    def test_a_curve_lies_in_its_band(self) -> None:
        drawn = part("training", "training")
        self.assertEqual(len(drawn.all("polygon", "band")), 1)
        self.assertEqual(len(drawn.all("polyline", "inside")), 1)


def worded(text: str) -> str:
    """The text without its numbers."""
    return re.sub(r"[\d.e+-]+|`[0-9a-f]{12,}`", "0", text)


class Samples(unittest.TestCase):
    """Numbers differ in their last digits from machine to machine; words do not."""

    def test_the_sample_page_is_of_this_version(self) -> None:
        self.assertLess(SAMPLE.stat().st_size, 150_000)
        old, new = parse(SAMPLE.read_text()), page("sample")
        for tag in ("title", "h2", "summary"):
            self.assertEqual(*([worded(e.text()) for e in tree.all(tag)] for tree in (old, new)))
        remarks = [[e.text() for e in tree.all("p", "remark")] for tree in (old, new)]
        self.assertEqual(*remarks)

    def test_the_sample_comment_is_of_this_version(self) -> None:
        old, new = (worded(path.read_text()) for path in (COMMENT, scratch / "sample.md"))
        self.assertEqual(old.splitlines()[:12], new.splitlines()[:12])
        self.assertEqual(re.findall("<summary>.*", old), re.findall("<summary>.*", new))


def colour(hexadecimal: str) -> np.ndarray:
    return np.array([int(hexadecimal[i:i + 2], 16) for i in (1, 3, 5)])


def variables(kind: str, dark: bool) -> dict[str, np.ndarray]:
    style = page(kind).all("style")[0].text()
    blocks = re.findall(r":root\{([^}]*)\}", style)
    pairs = re.findall(r"--(\w+):(#[0-9a-f]{3,6})", blocks[1 if dark else 0])
    return {n: colour(v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:])) for n, v in pairs}


class Pixels(unittest.TestCase):
    """What Chromium shows; a machine without it has the tests above."""

    def test_colours_of_light_and_dark_and_nothing_beyond_the_edge(self) -> None:
        if browser() is None:
            return
        for kind, width, dark in (("three", 360, False), ("three", 1920, True),
                                  ("large", 800, False), ("crash", 360, True),
                                  ("hostile", 360, False)):
            with self.subTest(kind, width=width, dark=dark):
                pixels = screenshot(pages[kind], width, 4000, dark)
                named = variables(kind, dark)
                # Nothing is as wide as the page: its edges are background from top to bottom.
                for column in (0, width - 1):
                    self.assertTrue((pixels[:, column] == named["bg"]).all(), f"column {column}")
                seen = [n for n in ("s0", "s9") if (pixels == named[n]).all(axis=2).any()]
                if kind in ("three", "large"):
                    self.assertEqual(seen, ["s0", "s9"])
                self.assertTrue((pixels == named["fg"]).all(axis=2).any())


@functools.cache
def paper(kind: str) -> list[Sheet]:
    """As a reader with a dark screen prints it."""
    return printed(pages[kind], dark=True)


class Paper(unittest.TestCase):
    """What Chromium prints; a machine without it or without poppler has the tests above."""

    def setUp(self) -> None:
        if not can_print():
            self.skipTest("no Chromium, or no pdftotext and pdftoppm")

    def test_nothing_is_cut_off_and_a_dark_screen_prints_light(self) -> None:
        margin = 18  # points; Chromium leaves 29
        for kind in ("three", "large", "crash", "hostile"):
            with self.subTest(kind):
                for sheet in paper(kind):
                    boxes = np.array([word[:4] for word in sheet.words])
                    self.assertGreater(boxes[:, :2].min(), margin)
                    self.assertLess(boxes[:, 2].max(), sheet.width - margin)
                    self.assertLess(boxes[:, 3].max(), sheet.height - margin)
                    self.assertGreater(np.median(sheet.pixels), 240, "dark paper")
                # A browser shrinks all of a page until its widest thing fits.
                heights = [word[3] - word[1] for word in paper(kind)[0].words]
                self.assertGreater(max(heights), 18, "smaller than it is on a screen")

    def test_what_is_folded_is_printed_and_no_row_is_torn(self) -> None:
        sheets = [sheet.text() for sheet in paper("three")]
        first = next(i for i, text in enumerate(sheets) if "All numbers" in text)
        self.assertIn("Where the limits come from", " ".join(sheets[first:]))
        head = "Check Mode Verdict Off / allowed Measured / limit "
        further = [text for text in sheets[first + 1 :] if text.startswith(head)]
        self.assertGreater(len(further), 3)
        for text in further:  # the head is repeated, and a whole row follows
            self.assertRegex(text, head + r"\S+ (staged|forced|exact) (pass|fail) ")

    def test_no_title_stands_alone(self) -> None:
        heads = [e.text() for tag in ("h2", "h3", "summary") for e in page("three").all(tag)]
        titles = {" ".join(head.split()) for head in heads} | {"limit 10x 100x 1000x"}
        for sheet in paper("three"):
            bottom = max(word[3] for word in sheet.words)
            last = " ".join(word[-1] for word in sheet.words if bottom - word[3] < 2)
            self.assertNotIn(last, titles)


if __name__ == "__main__":
    unittest.main()
