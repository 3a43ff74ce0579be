"""The action and the workflows: read as YAML, and every shell step run as the forge would.

ctest: `package.workflows`, in .venv-golden, which has a reader of YAML; .venv has one of JSON
Schema. schemas/ holds those of schemastore.org (github-workflow, github-action; Apache-2.0) without
their descriptions.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / "ci" / "action"
WORKFLOWS = ROOT / ".github" / "workflows"
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
MARKER = "<!-- dsv32-verify report -->"
SCHEMAS = ROOT / "suites" / "package" / "schemas"

VALIDATE = """
import json, sys
from jsonschema.validators import validator_for
schema = json.load(open(sys.argv[1]))
for error in validator_for(schema)(schema).iter_errors(json.load(sys.stdin)):
    print(error.json_path, error.message[:200])
"""

PROGRAM = """#!/bin/sh
printf '%s\\n' "$@" > "$HERE/words"
out=; while [ $# -gt 0 ]; do [ "$1" = --out ] && out=$2; shift; done
mkdir -p "$out"
echo '::error::a fork says this'
echo '# FAIL' > "$out/report.md"
exit $CODE
"""
# `python -m venv FOLDER`: its python notes what it is asked.
MAKER = """#!/bin/sh
mkdir -p $3/bin
printf '#!/bin/sh\\necho $* >> $HERE/pip' > $3/bin/python
chmod +x $3/bin/python
"""
# The forge's client: what it is asked goes to a file, what it answers comes from files.
CLIENT = """#!/bin/sh
printf '%s\\n' "$*" >> "$HERE/calls"
case "$*" in
  *pulls*) cat "$HERE/number" ;;
  *"--paginate"*) cat "$HERE/old" ;;
  *) for word in "$@"; do case "$word" in body=@*) cp "${word#body=@}" "$HERE/body" ;; esac; done ;;
esac
"""


def load(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    if True in content:  # YAML 1.1 reads the key `on` as a truth value
        content["on"] = content.pop(True)
    return content


def complaints(schema: str, content: dict[str, Any]) -> str:
    """What the forge would say of a file: nothing of a right one."""
    command = [ROOT / ".venv" / "bin" / "python", "-c", VALIDATE, SCHEMAS / f"{schema}.json"]
    done = subprocess.run(
        list(map(str, command)), input=json.dumps(content), capture_output=True, text=True
    )
    return done.stdout + done.stderr


class Forge(unittest.TestCase):
    def setUp(self) -> None:
        self.here = Path(tempfile.mkdtemp(prefix="dsv32-forge-"))
        self.addCleanup(shutil.rmtree, self.here)
        for name in ("output", "summary"):
            (self.here / name).touch()

    def program(self, name: str, text: str) -> Path:
        path = self.here / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def step(self, run: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess:
        given = {
            "PATH": f"{self.here}:/usr/bin:/bin",
            "HERE": str(self.here),
            "RUNNER_TEMP": str(self.here),
            "GITHUB_OUTPUT": str(self.here / "output"),
            "GITHUB_STEP_SUMMARY": str(self.here / "summary"),
            "GITHUB_ACTION_PATH": str(ACTION),
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", run]
        return subprocess.run(
            command, cwd=cwd or self.here, env=given | env, capture_output=True, text=True
        )

    def outputs(self) -> dict[str, str]:
        lines = (self.here / "output").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


class Shape(unittest.TestCase):
    def files(self) -> list[Path]:
        return sorted(WORKFLOWS.glob("*.yml"))

    def test_the_forge_takes_them(self) -> None:
        for path in [*self.files(), *(ACTION / "fork").glob("*.yml")]:
            self.assertEqual(complaints("workflow", load(path)), "", path)
        self.assertEqual(complaints("action", load(ACTION / "action.yml")), "")

    def test_the_forge_does_not_take_everything(self) -> None:
        content = load(ACTION / "action.yml")
        del content["runs"]["steps"][0]["shell"]
        self.assertIn("runs", complaints("action", content))
        content = load(WORKFLOWS / "guard.yml")
        content["jobs"]["guard"]["timeout_minutes"] = 5
        self.assertIn("$.jobs.guard", complaints("workflow", content))

    def test_workflows_say_what_they_may(self) -> None:
        for path in self.files():
            content = load(path)
            self.assertEqual({"name", "on", "jobs", "permissions"} - content.keys(), set(), path)
            for job in content["jobs"].values():
                self.assertIn("timeout-minutes", job, path)
                for step in job["steps"]:
                    self.assertTrue({"run", "uses"} & step.keys(), step)

    def test_nothing_of_a_stranger_is_pasted_into_a_shell(self) -> None:
        steps = load(ACTION / "action.yml")["runs"]["steps"]
        for path in self.files():
            steps = steps + [s for job in load(path)["jobs"].values() for s in job["steps"]]
        for step in steps:
            self.assertNotRegex(step.get("run", ""), EXPRESSION)

    def test_code_of_a_pull_request_runs_without_secrets(self) -> None:
        for path in self.files():
            content, text = load(path), path.read_text()
            self.assertNotIn("pull_request_target", text)
            self.assertNotRegex(text, r"secrets\.|secrets: inherit")
            writes = [k for k, v in content["permissions"].items() if v == "write"]
            if path.name == "parity-comment.yml":
                self.assertEqual(writes, ["pull-requests"])
                for step in content["jobs"]["comment"]["steps"]:
                    where = step.get("with", {}).get("ref", "${{ inputs.judge-ref }}")
                    self.assertEqual(where, "${{ inputs.judge-ref }}", "no code of the change")
            else:
                self.assertEqual(writes, [], path)
            for job in content["jobs"].values():
                for step in job["steps"]:
                    if step.get("uses", "").startswith("actions/checkout"):
                        self.assertIs(step["with"]["persist-credentials"], False, path)

    def test_every_input_and_output_is_there(self) -> None:
        action = load(ACTION / "action.yml")
        ids = {step["id"] for step in action["runs"]["steps"]}
        for expression in EXPRESSION.findall((ACTION / "action.yml").read_text()):
            kind, name = expression.split(".")[:2]
            self.assertIn(name, {"inputs": action["inputs"], "steps": ids}[kind], expression)
        for step in action["runs"]["steps"]:
            self.assertIn("shell", step)
        judge = load(WORKFLOWS / "parity.yml")["jobs"]["parity"]["steps"]
        given = next(step["with"] for step in judge if step.get("uses") == "./judge/ci/action")
        self.assertEqual(given.keys() - action["inputs"].keys(), set())

    def test_the_comment_waits_for_the_workflow_that_makes_it(self) -> None:
        waits = load(ACTION / "fork" / "parity-comment.yml")["on"]["workflow_run"]["workflows"]
        self.assertEqual(waits, [load(ACTION / "fork" / "parity.yml")["name"]])

    def test_what_a_fork_copies_calls_what_is_there(self) -> None:
        for path in sorted((ACTION / "fork").glob("*.yml")):
            content = load(path)
            called = load(WORKFLOWS / path.name)
            (job,) = content["jobs"].values()
            self.assertIn(f"/.github/workflows/{path.name}@", job["uses"])
            inputs = called["on"]["workflow_call"]["inputs"]
            required = {name for name, value in inputs.items() if value.get("required")}
            self.assertLessEqual(required, job["with"].keys())
            self.assertLessEqual(job["with"].keys(), inputs.keys())
            self.assertEqual(content["permissions"], called["permissions"])


class Action(Forge):
    def run_of(self, identity: str) -> str:
        steps = load(ACTION / "action.yml")["runs"]["steps"]
        return next(step["run"] for step in steps if step["id"] == identity)

    def judge(self, code: int, **env: str) -> subprocess.CompletedProcess:
        program = self.program("judge-program", PROGRAM)
        given = {"FORK": "head", "BASE": "", "FORK_PYTHON": "py", "OPTIONS": "", "OUT": "report"}
        given |= {"FAIL": "true", "PROGRAM": str(program), "CODE": str(code)}
        return self.step(self.run_of("judge"), **(given | env))

    def words(self) -> list[str]:
        return (self.here / "words").read_text().splitlines()

    def test_a_program_that_is_there_is_taken(self) -> None:
        program = self.program("there", "#!/bin/sh\n")
        self.assertEqual(self.step(self.run_of("install"), PROGRAM=str(program)).returncode, 0)
        self.assertEqual(self.outputs()["program"], str(program))

    def test_neither_program_nor_wheel_is_an_error(self) -> None:
        done = self.step(self.run_of("install"), PROGRAM="", WHEEL="")
        self.assertEqual(done.returncode, 2)
        self.assertIn("::error::", done.stdout)

    def test_a_wheel_is_installed(self) -> None:
        self.program("python3", MAKER)
        done = self.step(self.run_of("install"), PROGRAM="", WHEEL="w.whl")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("install", (self.here / "pip").read_text())
        self.assertTrue(self.outputs()["program"].endswith("bin/dsv32-verify"))

    def test_words_and_outputs(self) -> None:
        done = self.judge(0, BASE="base", OPTIONS="--dialect\nhf\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        words = ["fork", "head", "--python", "py", "--out", "report"]
        words += ["--annotations", str(self.here / "dsv32-annotations"), "--base", "base"]
        self.assertEqual(self.words(), [*words, "--dialect", "hf"])
        self.assertEqual(self.outputs(), {"exit-code": "0", "report": "report"})
        self.assertIn("# FAIL", (self.here / "summary").read_text())

    def test_the_report_says_where_its_page_is(self) -> None:
        run = {"GITHUB_SERVER_URL": "https://forge", "GITHUB_REPOSITORY": "o/r"}
        self.assertEqual(self.judge(0, GITHUB_RUN_ID="12", **run).returncode, 0)
        at = self.words().index("--link")
        self.assertEqual(self.words()[at + 1], "https://forge/o/r/actions/runs/12")

    def test_a_red_verdict_fails_the_step_unless_told_otherwise(self) -> None:
        self.assertEqual(self.judge(1).returncode, 1)
        self.assertEqual(self.judge(1, FAIL="false").returncode, 0)
        self.assertEqual(self.outputs()["exit-code"], "1")

    def test_what_a_fork_prints_is_no_command(self) -> None:
        lines = self.judge(1).stdout.splitlines()
        said = next(i for i, line in enumerate(lines) if line.startswith("::error::"))
        token = lines[0].removeprefix("::stop-commands::")
        self.assertTrue(lines[0].startswith("::stop-commands::") and len(token) == 32)
        self.assertLess(said, lines.index(f"::{token}::"))


class Comment(Forge):
    def comment(self, report: str, number: str = "7", old: str = "") -> str:
        self.program("gh", CLIENT)
        (self.here / "number").write_text(number)
        (self.here / "old").write_text(old)
        (self.here / "report.md").write_text(report)
        env = {"REPOSITORY": "o/r", "HEAD_SHA": "abc"}
        done = self.step(f"{ACTION}/comment report.md", **env)
        self.assertEqual(done.returncode, 0, done.stderr)
        return (self.here / "calls").read_text()

    def test_a_first_comment_is_posted(self) -> None:
        calls = self.comment("# FAIL\n")
        self.assertIn("--method POST repos/o/r/issues/7/comments", calls)
        body = (self.here / "body").read_text()
        self.assertTrue(body.startswith(MARKER + "\n"))
        self.assertIn("# FAIL", body)

    def test_a_later_one_replaces_it(self) -> None:
        calls = self.comment(f"{MARKER}\n# PASS\n", old="41\n")
        self.assertIn("--method PATCH repos/o/r/issues/comments/41", calls)
        self.assertEqual((self.here / "body").read_text().count(MARKER), 1)

    def test_nobody_is_called_and_nothing_is_too_long(self) -> None:
        self.comment("hello @everyone \x1b[31m\n" + "x" * 200000)
        body = (self.here / "body").read_text()
        self.assertNotIn("@everyone", body)
        self.assertNotIn("\x1b", body)
        self.assertLess(len(body.encode()), 65536)

    def test_a_commit_without_a_pull_request_is_left_alone(self) -> None:
        calls = self.comment("# FAIL\n", number="")
        self.assertNotIn("--method", calls)

    def test_no_report_is_no_failure(self) -> None:
        steps = load(WORKFLOWS / "parity-comment.yml")["jobs"]["comment"]["steps"]
        done = self.step(steps[-1]["run"])
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("no report", done.stdout)


class Workflows(Forge):
    def test_the_environment_of_the_fork(self) -> None:
        steps = load(WORKFLOWS / "parity.yml")["jobs"]["parity"]["steps"]
        run = next(s["run"] for s in steps if s.get("name") == "Environment of the fork")
        self.program("python", MAKER)
        done = self.step(run, INSTALL="torch\n\n./head\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        pip = (self.here / "pip").read_text()
        self.assertIn("install --quiet torch ./head", pip)
        self.assertIn("uninstall --quiet --yes transformers", pip)

    def guarded(self, *files: str) -> subprocess.CompletedProcess:
        """The step on a repository in which a second commit touches these files."""
        repository = self.here / "repository"
        (repository / "ci").mkdir(parents=True)
        shutil.copy(ROOT / "ci" / "guard", repository / "ci" / "guard")
        git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(repository)]
        env = {"PATH": os.environ["PATH"], "HOME": str(self.here)}

        def call(*words: str) -> str:
            return subprocess.run(
                [*git, *words], env=env, check=True, capture_output=True, text=True
            ).stdout.strip()

        call("init", "-q")
        call("add", "-A")
        call("commit", "-qm", "base")
        base = call("rev-parse", "HEAD")
        for name in files:
            path = repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("changed\n")
        call("add", "-A")
        call("commit", "-qm", "head", "--allow-empty")
        run = load(WORKFLOWS / "guard.yml")["jobs"]["guard"]["steps"][-1]["run"]
        return self.step(run, cwd=repository, BASE_SHA=base)

    def test_the_guard_says_what_changed(self) -> None:
        done = self.guarded("golden/data/tiny.h5", "harness/judge/limits.cpp", "src/other.cpp")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("::warning title=the measure changes::Goldens Limits", done.stdout)
        summary = (self.here / "summary").read_text()
        self.assertIn("`golden/data/tiny.h5`", summary)
        self.assertNotIn("src/other.cpp", summary)

    def test_the_guard_is_silent_otherwise(self) -> None:
        done = self.guarded("src/other.cpp")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("::warning", done.stdout)


if __name__ == "__main__":
    unittest.main()
