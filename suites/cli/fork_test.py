"""`dsv32-verify fork` on real transformers and on small forks: right, wrong, and not running.

ctest: `self_cli_fork`. The small forks are the plain model of suites/golden in a package that is
called transformers; what is wrong with one is a line that is put in.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

from program import (
    ENVIRONMENT,
    NOTHING,
    OK,
    PARITY,
    ROOT,
    USAGE,
    CliTest,
    clean_up,
    environment,
    metadata_of,
    run,
    scratch,
)

tearDownModule = clean_up

PLAIN = (ROOT / "suites" / "golden" / "plain_model.py").read_text()
PACKAGE = """
import json, os, signal, sys, time, types
__version__ = "5.0.plain"


class AutoConfig:
    @classmethod
    def from_pretrained(cls, path, **kwargs):
        with open(os.path.join(path, "config.json")) as file:
            return types.SimpleNamespace(**json.load(file))


class AutoModelForCausalLM:
    @classmethod
    def from_pretrained(cls, path, dtype=None, **kwargs):
        from safetensors.torch import load_file
        from .plain_model import PlainModel
        print("kwargs", sorted(kwargs))
        config = vars(AutoConfig.from_pretrained(path))
        model = PlainModel(config).to(dtype)
        weights = {}
        for name in sorted(os.listdir(path)):
            if name.endswith(".safetensors"):
                weights |= load_file(os.path.join(path, name))
        model.load_state_dict(weights)
        assert kwargs.get("use_sparse_attention", True), "an override arrived"
        return model
"""
CHECKER = """
def compare_files(modular_file_path, show_diff=True):
    modeling = modular_file_path.replace("modular_", "modeling_")
    made, is_there = open(modular_file_path).read(), open(modeling).read()
    if made == is_there:
        return 0
    print("-" + made + "\\n+" + is_there)
    return 1
"""
EPS = ("nn.LayerNorm(self.dim, eps=1e-6)", "nn.LayerNorm(self.dim, eps=1e-5)")
NO_SCALE = (' + 1e-20) * config["routed_scaling_factor"]', " + 1e-20)")
BODY = "        S = input_ids.shape[1]\n"


class Fork:
    """A source tree in the scratch folder."""

    def __init__(self, name: str, *changes: tuple[str, str], start: str = "") -> None:
        self.root = scratch / name
        package = self.root / "src" / "transformers"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(start + PACKAGE)
        text = PLAIN
        for old, new in changes:
            assert text.count(old) == 1, (old, text.count(old))
            text = text.replace(old, new)
        (package / "plain_model.py").write_text(text)

    def add_modular(self, modular: str, modeling: str) -> None:
        model = self.root / "src" / "transformers" / "models" / "deepseek_v32"
        model.mkdir(parents=True)
        (model / "modular_deepseek_v32.py").write_text(modular)
        (model / "modeling_deepseek_v32.py").write_text(modeling)
        utils = self.root / "utils"
        utils.mkdir()
        (utils / "check_modular_conversion.py").write_text(CHECKER)


def judge(
    fork: Fork, *words: object, case: str = "tiny-wide", **variables: str
) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = scratch / f"{fork.root.name}-report"
    shutil.rmtree(out, ignore_errors=True)
    python = [] if "--python" in words else ["--python", sys.executable]
    cases = ["--case", case] if case else []
    env = environment(**variables)
    return run("fork", fork.root, *python, *cases, "--out", out, *words, env=env), out


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def notes(out: Path) -> str:
    return "\n".join(v.get("note", "") for v in report_of(out)["verdicts"])


class Judges(CliTest):
    def test_a_right_fork_is_green(self) -> None:
        done, out = judge(Fork("right"))
        self.ended(done, OK)
        subjects = {v["subject"]["label"] for v in report_of(out)["verdicts"]}
        for mode in ("forward", "backward"):
            self.assertIn(f"candidate tiny-wide.{mode}.safetensors", subjects)
        self.assertIn("2/2 tiny-wide backward", done.stderr)
        self.assertTrue((out / "report.md").is_file() and (out / "junit.xml").is_file())

    def test_its_command_gives_the_report_again(self) -> None:
        done, out = judge(Fork("again"))
        command = report_of(out)["command"].split()
        again = run(*command[1:])
        self.ended(again, OK)
        filtered = run(
            *command[1:], "-k", "tiny-wide/candidate tiny-wide.forward.safetensors/logits"
        )
        self.ended(filtered, OK)
        self.assertIn("1/1 tiny-wide forward", filtered.stderr)

    def test_a_bug_is_named_and_the_base_tells_who_brought_it(self) -> None:
        before = Fork("before", NO_SCALE)
        done, out = judge(Fork("wrong", NO_SCALE, EPS), "--base", before.root)
        self.ended(done, PARITY)
        self.assertIn("k-norm-eps", done.stdout)
        self.assertRegex(done.stdout, r"new defect +k_norm with eps")
        self.assertRegex(done.stdout, r"defect left +routed_scaling_factor")
        self.assertNotIn("fixed defect", done.stdout)
        self.assertEqual(report_of(out / "base")["exit_code"], PARITY)
        self.assertIn("worse than base", (out / "changes.md").read_text())
        head = (out / "report.md").read_text().splitlines()[:12]
        self.assertRegex("\n".join(head), r"Worse than the base: 1 new defect, 1 left")
        self.assertRegex("\n".join(head), r"\d\. new: \*\*k\\_norm with eps")
        self.assertIn("than the base", (out / "report.html").read_text())
        words = ("--base", out / "base" / "report.json", "--md", out / "again.md")
        self.ended(run("report", "render", out / "report.json", *words), OK)
        self.assertEqual((out / "again.md").read_text(), (out / "report.md").read_text())

    def test_what_the_base_has_as_well_may_be_forgiven(self) -> None:
        words = ("--base", Fork("old-fault", NO_SCALE).root, "--fail-on", "new")
        done, out = judge(Fork("same-fault", NO_SCALE), *words)
        self.ended(done, OK)
        self.assertEqual(report_of(out)["exit_code"], PARITY)

    def test_what_a_change_mends_is_told(self) -> None:
        done, _ = judge(Fork("mended"), "--base", Fork("worse", EPS).root)
        self.ended(done, OK)
        self.assertRegex(done.stdout, r"fixed defect +k_norm with eps")

    def test_a_fork_without_a_cache_is_not_green(self) -> None:
        last = "        attention_mask: Tensor | None = None,\n"
        takes_anything = (last, last + "        labels: Any = None,\n        **kwargs: Any,\n")
        may_have_labels = ("loss = F.cross", "loss = labels is not None and F.cross")
        changes = (takes_anything, ("        labels: Tensor,\n", ""), may_have_labels)
        done, out = judge(Fork("no-cache", *changes), case="tiny-chunk")
        self.ended(done, NOTHING)
        self.assertIn("a cache in the model's output", notes(out))

    def test_overrides_reach_from_pretrained(self) -> None:
        done, out = judge(Fork("override"), "--config-override", "use_sparse_attention=false")
        self.ended(done, PARITY)
        self.assertIn("an override arrived", notes(out))


class DoesNotRun(CliTest):
    def test_an_import_error_is_a_verdict_with_its_frames(self) -> None:
        done, out = judge(Fork("broken", start="from json import loadz\n"))
        self.ended(done, PARITY)
        self.assertIn("cannot import name 'loadz'", notes(out))
        self.assertIn("transformers/__init__.py:1 in <module>: from json import loadz", notes(out))
        self.assertEqual(report_of(out)["counts"]["fail"], 1, "told once, not once for each dump")

    def test_an_error_in_the_model_file_is_told_once_too(self) -> None:
        done, out = judge(Fork("syntax", ("import math\n", "import math\ndef (\n")))
        self.ended(done, PARITY)
        self.assertIn("SyntaxError", notes(out))
        self.assertEqual(report_of(out)["counts"]["fail"], 1)

    def test_a_hang_costs_its_own_dump_alone(self) -> None:
        hang = BODY + "        while not self.training: pass\n"
        done, out = judge(Fork("hangs", (BODY, hang)), "--job-timeout", 8)
        self.ended(done, PARITY)
        self.assertIn("TimeLimit: not done after 8 s", notes(out))
        failing = {
            v["subject"]["label"] for v in report_of(out)["verdicts"] if v["trust"] == "fail"
        }
        self.assertEqual(failing, {"candidate tiny-wide.forward.safetensors"})

    def test_a_hang_that_does_not_listen_is_killed(self) -> None:
        deaf = (
            "        while not self.training:\n"
            "            try:\n"
            "                while True: sum(range(1000))\n"
            "            except Exception: pass\n"
        )
        done, out = judge(Fork("deaf", (BODY, BODY + deaf)), "--job-timeout", 8)
        self.ended(done, PARITY)
        self.assertIn("nothing in it could be stopped", notes(out))

    def test_a_death_in_one_dump_leaves_the_others(self) -> None:
        die = (
            BODY
            + "        import os\n"
            + "        if not self.training:\n"
            + "            print('last words', flush=True)\n"
            + "            os.kill(os.getpid(), 9)\n"
        )
        done, out = judge(Fork("dies", (BODY, die)))
        self.ended(done, PARITY)
        self.assertIn("killed by signal 9", notes(out))
        self.assertIn("last words", done.stderr)

    def test_a_death_on_import_is_a_verdict(self) -> None:
        done, out = judge(Fork("dead", start="import os; os.kill(os.getpid(), 9)\n"))
        self.ended(done, PARITY)
        self.assertIn("import: the process was killed by signal 9", notes(out))

    def test_an_exit_on_import_is_a_verdict(self) -> None:
        done, out = judge(Fork("leaves", start="import sys; sys.exit(0)\n"))
        self.ended(done, PARITY)
        self.assertIn("import: SystemExit", notes(out))

    def test_memory_has_a_limit(self) -> None:
        eat = BODY + "        hoard = torch.ones(1 << 29)\n"
        done, out = judge(Fork("eats", (BODY, eat)), "--job-memory", 1)
        self.ended(done, PARITY)
        self.assertIn("memory", notes(out))

    def test_a_missing_package_is_the_environments_fault(self) -> None:
        done, out = judge(Fork("wants", start="import a_package_that_nobody_has\n"))
        self.refused(done, ENVIRONMENT, "a_package_that_nobody_has")
        self.assertFalse((out / "report.json").exists())

    def test_what_a_fork_prints_is_no_progress(self) -> None:
        forged = 'print(\'{"event": "end", "job": 0, "code": 0}\')\n'
        done, _ = judge(Fork("prints", start=forged))
        self.ended(done, OK)
        self.assertIn("2/2 tiny-wide backward", done.stderr)


class Python(CliTest):
    def test_none_on_path_will_do(self) -> None:
        empty = scratch / "empty"
        empty.mkdir()
        done = run(
            "fork", Fork("nowhere").root, "--out", scratch / "x", env=environment(PATH=str(empty))
        )
        self.refused(done, ENVIRONMENT, "--python", "no python3 on PATH", "hint")

    def test_one_that_lacks_packages_is_named(self) -> None:
        bare = scratch / "bare"
        bare.mkdir()
        (bare / "python3").write_text(f'#!/bin/sh\nexec "{sys.base_prefix}/bin/python3" -S "$@"\n')
        (bare / "python3").chmod(0o755)
        done = run(
            "fork", Fork("lost").root, "--out", scratch / "y", env=environment(PATH=str(bare))
        )
        self.refused(done, ENVIRONMENT, str(bare / "python3"), "no torch")

    def test_one_that_does_not_start_is_refused(self) -> None:
        done, _ = judge(Fork("unstarted"), "--python", scratch / "no-such-python")
        self.refused(done, ENVIRONMENT, "cannot be started")

    def test_no_tree_is_no_fork(self) -> None:
        done = run("fork", scratch / "no-such-tree", "--out", scratch / "z")
        self.refused(done, USAGE, "source tree")


class Modular(CliTest):
    def test_an_edited_generated_file_is_a_finding(self) -> None:
        fork = Fork("edited")
        fork.add_modular("eps = 1e-6", "eps = 1e-5")
        done, out = judge(fork)
        self.ended(done, PARITY)
        self.assertIn("source.generated", done.stdout)
        self.assertIn("- eps".replace(" ", ""), notes(out))
        self.assertIn("the next conversion changes it", (out / "report.md").read_text())

    def test_an_unchanged_one_passes(self) -> None:
        fork = Fork("generated")
        fork.add_modular("eps = 1e-6", "eps = 1e-6")
        done, out = judge(fork)
        self.ended(done, OK)
        taps = {v["tap"]: v["trust"] for v in report_of(out)["verdicts"]}
        self.assertEqual(taps["source.generated"], "pass")


class Large(CliTest):
    def test_small_is_sketched_and_nothing_else_is(self) -> None:
        one = "small/candidate small.forward.safetensors/"
        done, out = judge(
            Fork("large", start="raise OSError('not today')\n"), "--full-set", "-k", one, case=""
        )
        self.ended(done, PARITY)
        (job,) = json.loads((out / "traces" / "jobs.json").read_text())["jobs"]
        self.assertIs(job["sketch"], True)
        left_out = " ".join(report_of(out)["not_tested"])
        for case in ("tiny-fp8", "tiny-yarn"):
            self.assertIn(f"{case}: real transformers", left_out)
        done, out = judge(Fork("little", start="raise OSError('not today')\n"))
        self.ended(done, PARITY)
        for job in json.loads((out / "traces" / "jobs.json").read_text())["jobs"]:
            self.assertNotIn("sketch", job)

    def test_a_job_may_be_sketched_beside_others(self) -> None:
        folder = scratch / "jobs"
        checkpoint = folder / "checkpoint"
        self.ended(run("weights", "make", "--case", "tiny-wide", "--out", checkpoint), OK)
        jobs = [
            {"checkpoint": str(checkpoint), "mode": "forward", "sketch": sketch,
             "out": str(folder / f"{sketch}.safetensors")}
            for sketch in (False, True)
        ]
        file = folder / "jobs.json"
        file.write_text(json.dumps({"version": 1, "jobs": jobs}))
        dump = [ROOT / "golden" / "dump", "--jobs", file, "--transformers", Fork("both").root]
        done = subprocess.run([sys.executable, *map(str, dump)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        marks = [metadata_of(Path(job["out"])).get("sketch") for job in jobs]
        self.assertEqual(marks, [None, "1"])
        for bad in ("yes", 1):
            file.write_text(json.dumps({"version": 1, "jobs": [jobs[0] | {"sketch": bad}]}))
            done = subprocess.run([sys.executable, *map(str, dump)], capture_output=True, text=True)
            self.assertEqual(done.returncode, 4, done.stdout + done.stderr)


class RealTransformers(CliTest):
    def test_the_default_set_is_green(self) -> None:
        out = scratch / "real"
        python = ROOT / ".venv-golden" / "bin" / "python"
        done = run("fork", "--python", python, "--out", out)
        self.ended(done, OK)
        traces = sorted(path.name for path in (out / "traces").glob("*.safetensors"))
        self.assertIn("tiny-chunk.forward.safetensors", traces)
        self.assertIn("tiny-bias.backward.safetensors", traces)
        producer = json.loads(metadata_of(out / "traces" / traces[0])["producer"])
        self.assertIn("transformers", producer)

    def test_the_full_set_has_a_decoding(self) -> None:
        out = scratch / "decoding"
        python = ROOT / ".venv-golden" / "bin" / "python"
        one = "tiny-wide/generate/candidate tiny-wide.generate.safetensors/"
        self.ended(run("fork", "--python", python, "--full-set", "-k", one, "--out", out), OK)
        self.assertEqual(len(list((out / "traces").glob("*.safetensors"))), 1)
        passed = {v["tap"] for v in report_of(out)["verdicts"] if v["trust"] == "pass"}
        self.assertLessEqual({"gen.tokens", "gen.logits", "layers.1.topk"}, passed)


if __name__ == "__main__":
    unittest.main()
