"""Mode `generate` on real transformers: its releases and caches pass, a fault of the loop does not.

ctest: `golden.candidates_generate`. The faults are planted by decode_in_transformers.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import unittest
from pathlib import Path

from program import (
    ARTEFACT,
    ENVIRONMENT,
    NOTHING,
    OK,
    PARITY,
    ROOT,
    USAGE,
    CliTest,
    checkpoint,
    clean_up,
    make_good,
    metadata_of,
    run,
    scratch,
    variant,
)
from safetensors.numpy import load_file

CASE = "tiny-wide"
RELEASES = ("5.23", "5.12", "5.17", "5.24")  # that of the goldens first
CACHES = ("dynamic", "static", "offloaded")
HERE = Path(__file__).parent
# The fault and what the finding says of it.
FAULTS = {
    "position-off-by-one": "known bug position-after-prompt",
    "cache-of-another-row": "right in the prompt and not after it: the cache",
    "indexer-cache-forgotten": "the indexer's cache",
    "indexer-cache-reset": "the indexer's cache",
    "eos-ignored": "eos ignored: row 0 emitted eos 77 at step 9 and goes on with",
    "padding-attended": "known bug padding-mask-missing",
    "k-of-queries": "known bug k-of-queries",
}
tearDownModule = clean_up


def environment_of(release: str) -> Path:
    name = ".venv-golden" if release == RELEASES[0] else f".venv-golden-{release}"
    return ROOT / name / "bin" / "python"


def folder(release: str) -> Path:
    return scratch / release


def setUpModule() -> None:
    """One process for each release; their imports take nearly all of the time."""
    make_good()
    made = checkpoint(CASE)
    running = []
    for release in RELEASES:
        folder(release).mkdir()
        labels = [*CACHES, *(FAULTS if release == RELEASES[0] else ())]
        words = [environment_of(release), HERE / "decode_in_transformers.py", made, folder(release)]
        running.append(
            subprocess.Popen(
                [*map(str, words), *labels],
                env=os.environ | {"PYTHONPATH": str(ROOT / "golden" / "dump")},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for child in running:
        _, err = child.communicate(timeout=300)
        assert child.returncode == 0, err


def dump(*words: object) -> subprocess.CompletedProcess[str]:
    command = [environment_of(RELEASES[0]), ROOT / "golden" / "dump", "--checkpoint"]
    command += [checkpoint(CASE), "--out", scratch / "refused.safetensors", *words]
    return subprocess.run(
        [*map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def judge(*traces: Path) -> tuple[int, dict]:
    done = run(*(word for trace in traces for word in ("--candidate", trace)), "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def of_candidate(report: dict, kind: str) -> list[dict]:
    return [entry for entry in report[kind] if entry["subject"]["party"] == "candidate"]


def about(report: dict, kind: str, trace: Path) -> list[dict]:
    """What is said of one of several candidates."""
    labels = {f"candidate {trace.name}", f"candidate {trace}"}
    return [entry for entry in report[kind] if entry["subject"]["label"] in labels]


class RealTransformers(unittest.TestCase):
    def test_every_release_passes_with_every_cache(self) -> None:
        traces = [folder(r) / f"{cache}.safetensors" for r in RELEASES for cache in CACHES]
        code, report = judge(*traces)
        self.assertEqual(code, OK, json.dumps(of_candidate(report, "findings")))
        for trace in traces:
            with self.subTest(trace):
                checks = {v["tap"]: v for v in about(report, "verdicts", trace)}
                self.assertEqual(checks["gen.tokens"]["checked"], 10 + 24)
                for tap in ("gen.logits", "layers.0.topk", "layers.1.router.experts"):
                    self.assertEqual(checks[tap]["trust"], "pass", tap)
                producer = json.loads(metadata_of(trace)["producer"])
                self.assertEqual(producer["cache"], trace.stem)
        witnesses = [f["subject"]["label"] for f in report["findings"]]
        self.assertEqual(witnesses.count("golden"), 1, witnesses)

    def test_every_fault_is_caught_and_told(self) -> None:
        traces = {fault: folder(RELEASES[0]) / f"{fault}.safetensors" for fault in FAULTS}
        code, report = judge(*traces.values())
        self.assertEqual(code, PARITY)
        for fault, words in FAULTS.items():
            with self.subTest(fault):
                findings = about(report, "findings", traces[fault])
                self.assertEqual([f["fault"] for f in findings], ["candidate"])
                self.assertIn(words, " ".join(findings[0]["causes"]), findings[0])


class Command(CliTest):
    """What golden/dump refuses; each costs an import of torch."""

    def test_a_cache_that_cannot_be_made_here(self) -> None:
        done = dump("--mode", "generate", "--cache", "offloaded")
        self.assertEqual(done.returncode, ENVIRONMENT, done.stderr)
        self.assertIn("--cache: offloaded: expected a CUDA device", done.stderr)

    def test_words_that_do_not_go_together(self) -> None:
        done = dump("--mode", "forward", "--cache", "static")
        self.assertEqual(done.returncode, USAGE, done.stderr)
        self.assertIn("--cache: mode forward: expected mode generate", done.stderr)


class Files(CliTest):
    """The judge on traces that are almost right."""

    def changed(self, name: str, drop: tuple[str, ...] = (), **metadata: str | None) -> Path:
        clean = folder(RELEASES[0]) / "dynamic.safetensors"
        tensors = {k: v for k, v in load_file(clean).items() if not k.startswith(drop or ("-",))}
        return variant(name, tensors, **metadata_of(clean), **metadata)

    def test_without_decisions_it_passes(self) -> None:
        code, report = judge(self.changed("undecided", drop=("layers.",)))
        self.assertEqual(code, OK, of_candidate(report, "verdicts"))

    def test_tokens_alone_are_judged_and_not_green(self) -> None:
        code, report = judge(self.changed("tokens", drop=("layers.", "gen.logits")))
        self.assertEqual(code, NOTHING)
        found = {v["tap"]: v["trust"] for v in of_candidate(report, "verdicts")}
        self.assertEqual((found["gen.tokens"], found["evidence"]), ("pass", "vacuous"))

    def test_without_tokens_nothing_is_judged(self) -> None:
        code, report = judge(self.changed("none", drop=("gen.tokens",)))
        self.assertNotEqual(code, OK)
        self.assertIn("missing", [v["trust"] for v in of_candidate(report, "verdicts")])

    def test_another_length_is_refused(self) -> None:
        trace = self.changed("short")
        clean = load_file(trace)
        clean["gen.tokens"] = clean["gen.tokens"][:, :-1].copy()
        path = variant("shorter", clean, **metadata_of(trace))
        self.refused(run("--candidate", path), ARTEFACT, "gen.tokens", "[2,24]", "[2,23]")

    def test_two_decodings_are_not_compared(self) -> None:
        traces = [folder(RELEASES[0]) / f"{cache}.safetensors" for cache in CACHES[:2]]
        self.refused(run("compare", *traces), ARTEFACT, "mode", "--candidate")

    def test_the_golden_can_be_shown(self) -> None:
        done = run("golden", "show", "generate.tiny-wide")
        self.ended(done, OK)
        self.assertRegex(done.stdout, r"gen.logits +\[2,24,100\]")

    def test_our_own_decoding_goes_through_a_file(self) -> None:
        out = scratch / "own.safetensors"
        words = ("--case", CASE, "--mode", "generate", "--out", out)
        self.ended(run("dump", "--impl", "optimized", *words), OK)
        self.assertEqual(metadata_of(out)["decoding"], '{"eos":77,"steps":24}')
        self.ended(run("--candidate", out), OK)

    def test_the_suite_is_listed_and_runs(self) -> None:
        self.assertIn("generate", run("list", "suites").stdout)
        done = run("--suite", "generate")
        self.ended(done, OK)
        self.assertIn("generate: golden vs oracle", done.stdout)


if __name__ == "__main__":
    unittest.main()
