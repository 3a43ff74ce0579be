"""`report render|validate|diff`, narrow terminals, crashes. ctest: `self_cli_report`."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from program import (
    ARTEFACT,
    NOTHING,
    OK,
    PARITY,
    PROGRAM,
    USAGE,
    CliTest,
    clean_up,
    environment,
    good,
    make_good,
    run,
    scratch,
    variant,
)
from safetensors.numpy import load_file

HOSTILE = ("\x1b[31mRED\x1b[0m\r\n\n## owned\n<script>alert(1)</script> ::error::boom\n::error::x "
           "##[error]x %0A ]]> \u202e\x07\x9b31m @everyone [x](javascript:alert(1))")
base, bad = scratch / "base", scratch / "bad"


def crashed(name: str, where: str, message: str) -> Path:
    values = {k: v for k, v in load_file(good).items()
              if k in ("embed", "layers.0.attn_norm", "layers.0.q_latent")}
    failure = {"where": where, "message": message, "shapes": [[1, 2]], "raised_at": "a/b/c.py:241"}
    return variant(name, values, failure=json.dumps(failure))


def wrong() -> Path:
    values = load_file(good)
    values["layers.0.ix.q"] = values["layers.0.ix.q"] * 1.5
    return variant("wrong", values)


def setUpModule() -> None:
    make_good()
    assert run("--candidate", good, "--out", base).returncode == OK
    assert run("--candidate", wrong(), "--out", bad).returncode == PARITY


tearDownModule = clean_up


def on_terminal(width: int, *words: object) -> str:
    """What appears on a terminal of so many columns; standard output alone."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    child = subprocess.Popen([PROGRAM, *map(str, words)], env=environment(NO_COLOR="1"),
                             stdout=side, stderr=subprocess.DEVNULL)
    os.close(side)
    seen = b""
    try:
        while chunk := os.read(main, 1 << 16):
            seen += chunk
    except OSError:
        pass
    os.close(main)
    child.wait()
    return seen.decode().replace("\r\n", "\n")


class Rendered(CliTest):
    def test_every_rendering_is_the_one_of_the_run(self) -> None:
        for folder in (base, bad):
            again = scratch / f"{folder.name}-again"
            self.ended(run("report", "render", folder / "report.json", "--out", again), OK)
            for name in ("report.json", "report.md", "report.html", "junit.xml"):
                self.assertEqual((again / name).read_bytes(), (folder / name).read_bytes(), name)

    def test_on_standard_output(self) -> None:
        told = run("--candidate", scratch / "wrong.safetensors").stdout
        done = run("report", "render", bad / "report.json")
        self.ended(done, OK)
        seconds = re.compile(r"\| [\d.e+-]+ s ")
        self.assertEqual(seconds.sub("", done.stdout), seconds.sub("", told))
        done = run("report", "render", bad / "report.json", "--html", "-")
        self.assertTrue(done.stdout.startswith("<!doctype html>"))
        done = run("report", "render", bad / "report.json", "--md", "-", "--link", "https://x.invalid/p")
        self.assertIn("(<https://x.invalid/p>)", done.stdout)

    def test_the_report_itself_is_never_overwritten(self) -> None:
        path = bad / "report.json"
        before = path.read_bytes()
        self.refused(run("report", "render", path, "--md", path), USAGE, "would be overwritten")
        self.refused(run("report", "diff", path, path, "--md", path), USAGE, "would be overwritten")
        self.assertEqual(path.read_bytes(), before)

    def test_annotations(self) -> None:
        done = run("report", "render", bad / "report.json", "--annotations", "-")
        self.ended(done, OK)
        self.assertTrue(done.stdout.startswith("::error title=dsv32-verify%3A candidate wrong"))
        done = run("report", "render", base / "report.json", "--annotations", "-")
        self.assertTrue(done.stdout.startswith("::notice title="))

    def test_junit_has_times_and_what_was_judged(self) -> None:
        suites = ElementTree.parse(bad / "junit.xml").getroot()
        whole = float(suites.get("time"))
        times = [float(suite.get("time")) for suite in suites]
        self.assertGreater(whole, 0)
        self.assertGreater(sum(times), 0)
        self.assertLessEqual(sum(times), whole + 0.01)
        properties = {p.get("name") for p in suites.iter("property")}
        self.assertTrue({"sha256", "commit", "torch", "dtype"} <= properties)

    def test_a_reviewer_needs_twelve_lines(self) -> None:
        lines = (bad / "report.md").read_text().splitlines()
        self.assertEqual(lines[0], "<!-- dsv32-verify report -->")
        head = lines[:12]
        self.assertEqual(lines[1], "## dsv32-verify: FAIL")
        for words in ("candidate wrong.safetensors is wrong", "1. **", "failed,", "report.html"):
            self.assertTrue(any(words in line for line in head), words)
        first_fold = next(i for i, line in enumerate(lines) if line.startswith("<details>"))
        self.assertLessEqual(first_fold, 12)
        self.assertEqual(sum("<details>" in line for line in lines),
                         sum("</details>" in line for line in lines))


class Validated(CliTest):
    def test_good_ones(self) -> None:
        done = run("report", "validate", base / "report.json", bad / "report.json")
        self.ended(done, OK)
        self.assertIn("valid, schema 4, exit 1", done.stdout)

    def test_damaged_ones(self) -> None:
        report = json.loads((bad / "report.json").read_text())
        changes = [{k: v for k, v in report.items() if k != key} for key in report]
        changes += [report | {"surprise": 1}, report | {"schema_version": 3},
                    report | {"exit_code": 0}, report | {"counts": report["counts"] | {"fail": 0}}]
        for i, change in enumerate(changes):
            path = scratch / f"damaged-{i}.json"
            path.write_text(json.dumps(change))
            self.refused(run("report", "validate", path), ARTEFACT, path.name)
        mixed = run("report", "validate", base / "report.json", scratch / "damaged-0.json")
        self.assertEqual(mixed.returncode, ARTEFACT)
        self.assertIn("valid", mixed.stdout)


class Compared(CliTest):
    def diff(self, before: Path, after: Path, code: int, *words: object) -> str:
        done = run("report", "diff", before / "report.json", after / "report.json", *words)
        self.ended(done, code)
        return done.stdout

    def test_broken_fixed_and_left(self) -> None:
        text = self.diff(base, bad, PARITY)
        self.assertRegex(text, r"broken:\n.*layers\.0\.ix\.q \(staged\): pass -> fail, ")
        self.assertIn("new defect", text)
        self.assertIn("WORSE | ", text)
        text = self.diff(bad, base, OK)
        self.assertIn("fixed defect", text)
        self.assertIn("NOT WORSE | ", text)
        self.assertIn("still broken:", self.diff(bad, bad, OK))
        self.diff(bad, bad, PARITY, "--fail-on", "any")
        self.diff(base, base, OK, "--fail-on", "any")

    def test_what_is_no_longer_tested_is_worse(self) -> None:
        values = {k: v for k, v in load_file(good).items() if not k.startswith("grad.")}
        less = scratch / "less"
        run("--candidate", variant("less", values), "--out", less)
        self.assertIn("newly untested:", self.diff(base, less, PARITY))

    def test_nothing_in_common(self) -> None:
        other = scratch / "other"
        run("--case", "tiny-short7", "--impl", "reference", "--dtype", "float32", "--out", other)
        self.diff(base, other, NOTHING)

    def test_a_comment(self) -> None:
        text = self.diff(base, bad, PARITY, "--md", "-")
        self.assertTrue(text.startswith("<!-- dsv32-verify diff -->\n## dsv32-verify: worse than"))
        self.assertLess(len(text), 65536)

    def test_words(self) -> None:
        self.refused(run("report", "diff", base / "report.json", base / "report.json", "--fail-on",
                         "never"), USAGE, "--fail-on")
        self.refused(run("report", "diff", good, good), ARTEFACT, "good")


class Terminals(CliTest):
    def test_no_line_is_wider_than_the_terminal(self) -> None:
        for width in (40, 80, 120):
            text = on_terminal(width, "--candidate", scratch / "wrong.safetensors")
            self.assertIn("FAIL", text)
            for line in text.splitlines():
                word = max(map(len, line.split()), default=0)  # a word of a command stays whole
                if word <= width - 8:
                    self.assertLessEqual(len(line), width, line)

    def test_a_broken_command_can_be_pasted(self) -> None:
        text = on_terminal(60, "--candidate", scratch / "wrong.safetensors")
        command = text[text.index("    repro "):].split(maxsplit=1)[1]
        lines = command.splitlines()
        end = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
        pasted = "\n".join(lines[: end + 1]).replace("dsv32-verify", PROGRAM, 1)
        done = subprocess.run(["bash", "-c", pasted], env=environment(), capture_output=True,
                              text=True, check=False)
        self.assertEqual(done.returncode, PARITY, done.stderr)
        self.assertIn("1 of 2 checks failed", done.stdout)

    def test_no_breaks_where_no_terminal_is(self) -> None:
        done = run("--candidate", scratch / "wrong.safetensors")
        self.assertTrue(any(len(line) > 100 for line in done.stdout.splitlines()))


class Crashed(CliTest):
    def test_where_with_what_and_how_far_it_was_right(self) -> None:
        path = crashed("crash", "model.layers.0.self_attn.indexer", "RuntimeError: out of range")
        done = run("--candidate", path, "--out", scratch / "crash")
        self.ended(done, PARITY)
        headline = ("crashed in model.layers.0.self_attn.indexer: RuntimeError: out of range, at "
                    "c.py:241 (inputs of shapes [[1,2]]); 3 taps before it are right")
        self.assertIn(headline, done.stdout)
        never = [line for line in done.stdout.splitlines() if "never reached" in line]
        self.assertEqual(len(never), 1)
        self.assertNotIn("was not found", done.stdout)
        self.assertNotIn("needs logits", done.stdout)
        for name in ("report.md", "report.html", "junit.xml"):
            text = (scratch / "crash" / name).read_text()
            self.assertIn("3 taps before it are right", text, name)

    def test_a_crash_after_a_wrong_tap_says_so(self) -> None:
        values = {"embed": load_file(good)["embed"] * 1.5}
        failure = json.dumps({"where": "forward", "message": "E: m", "shapes": []})
        done = run("--candidate", variant("both", values, failure=failure))
        self.assertIn("crashed in forward: E: m; of 1 tap before it 1 wrong", done.stdout)

    def test_hostile_text_is_escaped_everywhere(self) -> None:
        folder = scratch / "hostile"
        done = run("--candidate", crashed("hostile", HOSTILE, HOSTILE), "--out", folder)
        self.ended(done, PARITY)
        steering = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")
        self.assertNotRegex(done.stdout + done.stderr, steering)
        texts = {name: (folder / name).read_text()
                 for name in ("report.md", "report.html", "junit.xml", "report.json")}
        texts["annotations"] = run("report", "render", folder / "report.json", "--annotations",
                                   "-").stdout
        for name, text in texts.items():
            self.assertNotRegex(text, steering, name)
        for name in ("report.html", "junit.xml"):
            self.assertNotIn("<script", texts[name], name)
        ElementTree.fromstring(texts["junit.xml"])
        outside_code = re.sub(r"`[^`]*`", "", texts["report.md"])
        self.assertNotIn("<script", outside_code)
        self.assertNotRegex(outside_code, r"(?<!\\)\[x(?<!\\)\]\(")
        self.assertNotRegex(outside_code, r"(?m)^## owned|@everyone")
        for line in texts["annotations"].splitlines():
            self.assertRegex(line, r"^::error title=dsv32-verify%3A candidate hostile")
        for width in (40, 80):
            self.assertNotRegex(on_terminal(width, "report", "render", folder / "report.json"),
                                steering)


if __name__ == "__main__":
    unittest.main()
