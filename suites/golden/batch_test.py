"""Real text as a batch, with a tokenizer that the test trains itself.

ctest: `golden.batch`, in .venv-golden.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import tempfile
import unittest
from pathlib import Path

import dsv32_batch
import numpy as np
from agreement import limit
from program import ENVIRONMENT, OK, environment, run
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = [
    {"question": "How many are two and two? " * 4, "answer": "Two and two are four."},
    {"question": "Who has seven? " * 4, "answer": "Nobody."},
    {"question": "Sum of one and nine and nine? " * 4, "answer": "It is nineteen, surely."},
]
VOCABULARY = 100  # of the tiny cases

scratch = tempfile.TemporaryDirectory(prefix="dsv32-batch-")
folder = Path(scratch.name)


def trained(file: Path) -> Tokenizer:
    """A byte-level BPE with 100 tokens and a <s> before each text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<unk>", "<s>", "</s>"]
    words = [text for line in TEXT for text in line.values()] + ["\n", "!"]
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=specials)
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    tokenizer.save(str(file))
    return tokenizer


class Batch(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.file = folder / "tokenizer.json"
        cls.tokenizer = trained(cls.file)
        cls.text = folder / "text.jsonl"
        cls.text.write_text("\n".join(map(json.dumps, TEXT)) + "\n\n")

    def make(self, *words: object, text: Path | None = None) -> tuple[int, str]:
        err = io.StringIO()
        given = ["--tokenizer", self.file, "--text", text or self.text, "--out", folder / "out"]
        with contextlib.redirect_stderr(err):
            try:
                code = dsv32_batch.main(list(map(str, [*given, *words])))
            except SystemExit as error:
                code = int(error.code or 0)
        return code, err.getvalue()

    def batch(self, *words: object, text: Path | None = None) -> dict[str, np.ndarray]:
        code, err = self.make(*words, text=text)
        self.assertEqual(code, 0, err)
        return load_file(folder / "out")

    def decoded(self, ids: np.ndarray) -> str:
        return self.tokenizer.decode(ids.tolist())

    def test_the_answer_is_counted_and_nothing_else(self) -> None:
        batch = self.batch("--eos", "</s>")
        for row, line in enumerate(TEXT):
            ids = batch["input_ids"][row][batch["attention_mask"][row] == 1]
            labels = batch["labels"][row][batch["labels"][row] != -100]
            self.assertEqual(self.decoded(ids), f"{line['question']}\n{line['answer']}")
            self.assertEqual(self.decoded(labels), line["answer"])
            self.assertEqual(labels[-1], 2)

    def test_padding_is_at_the_left(self) -> None:
        batch = self.batch()
        mask = batch["attention_mask"]
        self.assertTrue((np.diff(mask, axis=1) >= 0).all())
        self.assertTrue(mask[:, -1].all())
        self.assertEqual(mask.sum(1).max(), mask.shape[1])
        self.assertTrue((batch["labels"][mask == 0] == -100).all())
        counted = batch["labels"] != -100
        self.assertTrue((batch["labels"][counted] == batch["input_ids"][counted]).all())

    def test_a_token_across_the_border_is_not_of_the_answer(self) -> None:
        ids, labels = dsv32_batch.encoded(self.tokenizer, "Two an", "d two", None)
        crossing = [i for i, (a, b) in enumerate(self.tokenizer.encode("Two and two").offsets)
                    if a < 6 < b]  # fmt: skip
        self.assertEqual(len(crossing), 1)
        self.assertEqual(labels[crossing[0]], -100)
        self.assertEqual(labels[-1], ids[-1])

    def test_plain_text_counts_all_but_its_first_token(self) -> None:
        file = folder / "plain.jsonl"
        file.write_text(json.dumps({"text": "Two and two are four."}))
        batch = self.batch(text=file)
        self.assertEqual((batch["labels"] == -100).sum(), 1)

    def test_length_and_number_are_respected(self) -> None:
        longest = self.batch()["input_ids"].shape[1]
        code, err = self.make("--length", longest - 1)
        self.assertEqual(code, 0)
        self.assertIn("left out", err)
        self.assertEqual(load_file(folder / "out")["input_ids"].shape[1], longest - 1)
        self.assertEqual(len(self.batch("--examples", 1)["input_ids"]), 1)

    def test_another_template(self) -> None:
        batch = self.batch("--template", "{question} - {answer}!")
        labels = batch["labels"][1][batch["labels"][1] != -100]
        self.assertEqual(self.decoded(labels), "Nobody.!")

    def test_the_judge_takes_it(self) -> None:
        self.batch()
        done = run("--case", "tiny-wide", "--batch", folder / "out")
        self.assertEqual(done.returncode, OK, done.stdout + done.stderr)
        self.assertIn("answers  oracle: loss ", done.stdout)

    def close(self, got: float, want: float) -> None:
        self.assertLessEqual(abs(got - want), limit("golden.value") * abs(want))

    def test_each_answer_has_its_loss(self) -> None:
        labels = self.batch()["labels"]
        files = folder / "report"
        done = run("--case", "tiny-wide", "--batch", folder / "out", "--out", files)
        self.assertEqual(done.returncode, OK, done.stderr)
        report = json.loads((files / "report.json").read_text())
        loss = {}
        for answers in report["answers"]:
            loss[answers["subject"]["label"]] = answers["all"]["loss"]
            scores = answers["examples"]
            self.assertEqual([s["tokens"] for s in scores], (labels != -100).sum(1).tolist())
            for key in ("loss", "top1"):
                mean = sum(s[key] * s["tokens"] for s in scores) / (labels != -100).sum()
                self.close(answers["all"][key], mean)
            self.close(answers["all"]["perplexity"], math.exp(answers["all"]["loss"]))
        self.assertEqual(len(loss), 5)
        self.close(loss["reference float32"], loss["oracle"])
        self.assertNotEqual(loss["reference float32"], loss["oracle"])
        for name in ("report.html", "report.md"):
            self.assertIn("perplexity", (files / name).read_text(), name)
        self.assertEqual(run("report", "validate", files / "report.json").returncode, OK)

    def test_without_an_own_batch_there_are_no_answers(self) -> None:
        done = run("--case", "tiny-wide", "--impl", "reference", "--json")
        self.assertNotIn("answers", json.loads(done.stdout))

    def test_the_command_of_the_program_is_the_same(self) -> None:
        words = ["--tokenizer", self.file, "--text", self.text, "--eos", "</s>"]
        env = environment(DSV32_PYTHON=sys.executable)
        done = run("batch", "make", *words, "--out", folder / "other", env=env)
        self.assertEqual(done.returncode, OK, done.stderr)
        self.make("--eos", "</s>")
        self.assertEqual((folder / "other").read_bytes(), (folder / "out").read_bytes())
        done = run("batch", "make", *words, "--out", folder / "none" / "x", env=env)
        self.assertEqual(done.returncode, ENVIRONMENT, done.stderr)
        done = run("batch", "make", *words, "--out", folder / "x",
                   env=environment(DSV32_PYTHON="no-such-python"))  # fmt: skip
        self.assertEqual(done.returncode, ENVIRONMENT, done.stderr)
        self.assertIn("expected a Python with numpy and tokenizers", done.stderr)

    def test_wrong_input_is_named(self) -> None:
        wrong = folder / "wrong.jsonl"
        for text, words, code, said in (
            ('{"question": "x"}', [], 4, "question and answer, or text, got keys ['question']"),
            ("{", [], 4, "wrong.jsonl:1: line: expected JSON"),
            ("", [], 4, "at least one example"),
            ('{"text": "Two and two"}', ["--length", 1], 4, "a larger --length"),
            ('{"text": "Two"}', ["--template", "{answer}"], 2, "{question} before {answer}"),
            ('{"text": "Two"}', ["--eos", "<end>"], 2, "one of the tokenizer's, got '<end>'"),
            ('{"text": "Two"}', ["--tokenizer", self.text], 4, "a tokenizer.json"),
            ('{"text": "Two"}', ["--tokenizer", folder / "none"], 4, "a readable file"),
        ):
            wrong.write_text(text)
            got, err = self.make(*words, text=wrong)
            self.assertEqual(got, code, err)
            self.assertIn(said, err)

    def test_tokens_beyond_the_model_are_refused(self) -> None:
        config = folder / "config.json"
        config.write_text('{"vocab_size": 10}')
        code, err = self.make("--config", config)
        self.assertEqual(code, 4)
        self.assertIn("the tokenizer of another model?", err)


if __name__ == "__main__":
    unittest.main()
