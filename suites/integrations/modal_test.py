"""The Modal app, built offline by the real package. Run by ci/engines."""

from __future__ import annotations

import importlib.util
import re
import tempfile
import unittest
from pathlib import Path
from types import ModuleType
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("modal_app", ROOT / "integrations/modal_app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class App(unittest.TestCase):
    def test_the_app_is_built_without_a_network(self) -> None:
        app = loaded()
        self.assertEqual(app.app.name, "dsv32-verify")
        self.assertEqual(list(app.app.registered_functions), ["judge"])
        self.assertEqual(list(app.app.registered_entrypoints), ["main"])

    def test_its_packages_are_those_of_the_setup(self) -> None:
        setup = (ROOT / "ci" / "setup").read_text()
        wanted = set(re.search(r"packages=\(\n(.*?)\n\)", setup, re.S)[1].split())
        source = (ROOT / "integrations" / "modal_app.py").read_text()
        listed = re.search(r"apt_install\(\s*\*(.*?)\.split\(\)", source, re.S)[1]
        self.assertEqual(set(re.sub(r'["\n]', " ", listed).split()), wanted)

    def test_it_dumps_a_copy_and_judges_it(self) -> None:
        app, ran = loaded(), []

        def run(words: list[str], **_: object) -> mock.Mock:
            ran.append(list(map(str, words)))
            return mock.Mock(returncode=1)

        with mock.patch.object(app.subprocess, "run", run), mock.patch.object(
            app, "reports", mock.Mock()
        ), mock.patch.object(app, "weights", mock.Mock()):
            code = app.judge.local("tiny-wide")
        self.assertEqual(code, 1)
        programs = [words[1] if words[0].endswith("verify") else words[0] for words in ran]
        python = f"{app.PLACE}/.venv/bin/python"
        self.assertEqual(programs, ["doctor", "weights", "cp", python, "--candidate"])
        self.assertIn(f"{tempfile.gettempdir()}/tiny-wide", ran[3])  # the copy, not the volume

    def test_a_long_step_says_that_it_lives(self) -> None:
        app = loaded()
        with mock.patch.object(app, "MINUTE", 0.01), mock.patch("builtins.print") as said:
            with app.heartbeat("judge tiny"):
                app.time.sleep(0.1)
        self.assertIn("judge tiny: ", said.call_args.args[0])


if __name__ == "__main__":
    unittest.main()
