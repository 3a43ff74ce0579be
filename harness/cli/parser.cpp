#include "harness/cli/parser.h"

#include "harness/cli/help.h"

namespace dsv32::harness {
namespace {

constexpr char kAbout[] =
    "Judges DeepSeek-V3.2 implementations: forward values and gradients, tap by tap, against a\n"
    "float64 oracle, and names the first op that diverges. Without arguments: --config tiny.";

constexpr char kFooter[] =
    "Suites: forward and backward by default, with --config small the training suites as well;\n"
    "--suite all runs every suite.\n"
    "\n"
    "Examples:\n"
    "  dsv32-verify --config small --out report/\n"
    "  dsv32-verify fork path/to/transformers --python .venv/bin/python --out report/\n"
    "  dsv32-verify weights make --case small --out ckpt/\n"
    "  python golden/dump --checkpoint ckpt/ --case small --out fork.safetensors\n"
    "  dsv32-verify --candidate fork.safetensors --out report/\n"
    "  dsv32-verify compare fork.safetensors oracle.safetensors\n"
    "  dsv32-verify report diff base/report.json head/report.json\n"
    "\n"
    "Exit codes: 0 passed, 1 a check failed, 2 usage, 3 internal error, 4 file refused,\n"
    "5 nothing was checked, 6 device, memory, disk or time, 130 and 143 interrupted.\n"
    "Colours: NO_COLOR, FORCE_COLOR and TERM=dumb are respected.";

/// One option: its name, where its value goes, how the value is called, and one line about it.
template <typename Value>
CLI::Option* add(CLI::App& app, const std::string& name, Value& value, const std::string& called,
                 const std::string& about, const std::string& group = "Options") {
  return app.add_option(name, value, about)->option_text(called)->group(group);
}

void add_flag(CLI::App& app, const std::string& name, bool& value, const std::string& about,
              const std::string& group) {
  app.add_flag(name, value, about)->group(group)->disable_flag_override();
}

void add_talk(CLI::App& app, Raw& raw) {
  Options& o = raw.options;
  add(app, "--color", raw.color, "WHEN", "auto (default), always or never", kOther);
  add_flag(app, "-v,--verbose", o.verbose, "say more: every tap, debug messages", kOther);
  add_flag(app, "-q,--quiet", o.quiet, "no progress, no messages but errors", kOther);
  app.set_help_flag("-h,--help", "this text")->group(kOther);
}

void add_renderings(CLI::App& app, Raw& raw) {
  add(app, "--junit", raw.junit, "FILE", "write the JUnit report to this file; - is stdout",
      kOutput);
  add(app, "--md", raw.markdown, "FILE", "write the Markdown report to this file; - is stdout",
      kOutput);
  add(app, "--html", raw.html, "FILE", "write the page with pictures to this file; - is stdout",
      kOutput);
  add(app, "--annotations", raw.annotations, "FILE",
      "write a forge's workflow commands to this file; - is stdout", kOutput);
}

void add_reports(CLI::App& app, Raw& raw) {
  add(app, "--out", raw.out, "DIR", "write report.json, .html, .md and junit.xml into this folder",
      kOutput);
  add_flag(app, "--json", raw.options.json, "print report.json on stdout and nothing else",
           kOutput);
  add_renderings(app, raw);
}

void add_judged(CLI::App& app, Raw& raw) {
  Options& o = raw.options;
  add(app, "--config", raw.config, "NAME|PATH",
      "all cases of tiny, small, medium, full or a config.json", kJudged);
  add(app, "--case", raw.case_name, "NAME|JSON", "one case (dsv32-verify list cases), or your own",
      kJudged);
  add(app, "--candidate", o.candidates, "FILE",
      "judge this trace in its case; a folder: all ranks; repeatable", kJudged)
      ->allow_extra_args(false);
  add_flag(app, "--accept-weak", raw.options.accept_weak,
           "undecided checks pass (decisions not in the file)", kJudged);
  add_flag(app, "--all", raw.options.all,
           "beside a candidate of a large case judge golden and own models again", kJudged);
  add_flag(app, "--no-cache", raw.options.no_cache, "no verdicts of earlier runs, and keep none",
           kOther);
  add(app, "--noise", raw.noise, "FILE", "a clean trace of the candidate's engine: its own noise",
      kJudged);
  add(app, "--dialect", raw.dialect, "NAME",
      "what the candidate declares to be, as hf or hf+k-norm-eps; default spec-1", kJudged);
  add(app, "--weights", o.weights, "SOURCE",
      "synthetic (default), synthetic-fp8, either with :SEED, or a folder", kJudged);
  add(app, "--batch", raw.batch, "FILE", "own input_ids, attention_mask, labels (no golden)",
      kJudged);
  add(app, "--seed", raw.seed, "N", "another seed for weights and batch (no golden)", kJudged);
}

void add_how(CLI::App& app, Raw& raw) {
  Options& o = raw.options;
  add(app, "-t,--suite", o.suites, "SUITE,..", "all, or of dsv32-verify list suites; default below",
      kHow)
      ->delimiter(',')
      ->allow_extra_args(false);
  add(app, "-k", o.filter, "TEXT", "only checks whose \"case/[suite/]subject/check\" contains this",
      kHow);
  add(app, "--device", o.device, "NAME", "auto (default), cpu or cuda", kHow);
  add(app, "--dtype", raw.dtypes, "TYPE,..",
      "of our implementations; default float32,bfloat16; also fp8", kHow)
      ->delimiter(',')
      ->allow_extra_args(false);
  add(app, "--impl", o.impls, "NAME,..",
      "reference, optimized, optimized-simt; default the first two", kHow)
      ->delimiter(',')
      ->allow_extra_args(false);
  add(app, "--layers", o.layers, "N,..",
      "these layers alone, from made-up streams; also embed, head", kHow);
  add(app, "--timeout", raw.timeout, "SECONDS", "give up after this time (exit 6)", kHow);
  add_flag(app, "--resume", o.resume, "go on from the journal that a streamed run left in --out",
           kOther);
  add_flag(app, "--dry-run", o.dry_run, "say what it would take in memory and time, and end",
           kOther);
}

/// Flags that docs/architecture.md 4 keeps for later: known, so that they are not called unknown.
void add_later(Parser& parser) {
  CLI::App& app = parser.app;
  for (const char* name : {"bench", "diagnose"}) {
    CLI::App* later = app.add_subcommand(name)->group("")->prefix_command();
    later->set_help_flag();
    parser.later.push_back(later);
  }
}

CLI::App* add_verb(Parser& parser, CLI::App& parent, Command command, const std::string& name,
                   const std::string& about) {
  CLI::App* app = parent.add_subcommand(name, about);
  parser.verbs.push_back({app, command});
  return app;
}

CLI::App* add_noun(Parser& parser, const std::string& name, const std::string& about) {
  CLI::App* app = parser.app.add_subcommand(name, about)->require_subcommand(1);
  app->set_help_flag("-h,--help", "this text");
  return app;
}

void add_dump(Parser& parser) {
  Raw& raw = parser.raw;
  Options& o = raw.options;
  CLI::App& dump = *add_verb(parser, parser.app, Command::dump, "dump",
                             "write the trace of one of our implementations");
  add(dump, "--case", raw.case_name, "NAME|JSON", "the case to run (required)")->required();
  add(dump, "--out", raw.out, "FILE", "the safetensors file to write (required); - is stdout")
      ->required();
  add(dump, "--impl", o.impls, "NAME", "oracle, reference (default), optimized, optimized-simt")
      ->delimiter(',')
      ->allow_extra_args(false);
  add(dump, "--mode", o.mode, "NAME",
      "forward (default), backward, kl-warmup, kl-sparse, train or generate");
  add(dump, "--dtype", raw.dtypes, "TYPE", "float64, float32 (default), bfloat16 or fp8")
      ->expected(1);
  add(dump, "--weights", o.weights, "SOURCE", "as of a judgement; default synthetic");
  add(dump, "--dialect", raw.dialect, "NAME", "run as this dialect; default spec-1");
  add(dump, "--device", o.device, "NAME", "auto (default), cpu or cuda");
  dump.add_flag("--tap-gradients", o.tap_gradients,
                "dtap.NAME too: the gradient of every tap (modes backward and KL)");
  dump.add_flag("--sketch", o.sketch, "chosen rows, norms and projections in place of whole taps");
}

void add_fork(Parser& parser) {
  Raw& raw = parser.raw;
  ForkOptions& o = raw.options.fork;
  CLI::App& fork = *add_verb(parser, parser.app, Command::fork, "fork",
                             "judge a transformers checkout: checkpoints, dumps and reports");
  add(fork, "path", raw.path, "[PATH]", "");
  add(fork, "--python", raw.python, "FILE",
      "the fork's own interpreter; default: the one on PATH that has what it needs", kJudged);
  add(fork, "--base", raw.base, "PATH", "the tree before the change: what was fixed and broken",
      kJudged);
  add(fork, "--fail-on", o.fail_on, "WHAT",
      "with --base: any (default), or new: only what it broke", kJudged);
  add(fork, "--case", raw.cases, "NAME,..", "these cases in place of the default set", kJudged)
      ->delimiter(',')
      ->allow_extra_args(false);
  add_flag(fork, "--full-set", o.full_set, "all cases, KL, training, decoding, small: minutes",
           kJudged);
  add(fork, "--dialect", raw.dialect, "NAME", "what the fork declares to be; default spec-1",
      kJudged);
  add_flag(fork, "--accept-weak", raw.options.accept_weak, "undecided checks pass", kJudged);
  add(fork, "--class", raw.cls, "NAME", "class to load with, or module.Class", kHow);
  add(fork, "--device-map", raw.device_map, "MAP", "as from_pretrained takes it", kHow);
  add(fork, "--attn", raw.attn, "NAME", "attention backend; default: what users get", kHow);
  add(fork, "--experts", raw.experts, "NAME", "experts backend; default: what users get", kHow);
  add(fork, "--config-override", o.overrides, "KEY=VALUE",
      "a config field, as from_pretrained takes it; repeatable", kHow)
      ->allow_extra_args(false);
  add_flag(fork, "--trust-remote-code", o.trust_remote_code,
           "for a model whose code lies in the checkpoint", kHow);
  add(fork, "-k", raw.options.filter, "TEXT",
      "only checks whose \"case/subject/check\" contains this", kHow);
  add(fork, "--job-timeout", raw.job_seconds, "SECONDS", "limit of one dump; default 300", kHow);
  add(fork, "--job-memory", raw.job_gib, "GIB", "limit of one dump; default 8", kHow);
  add(fork, "--timeout", raw.timeout, "SECONDS", "give up after this time (exit 6)", kHow);
  add_reports(fork, raw);
  add(fork, "--link", raw.options.link, "URL", "where the page will be, for the Markdown report",
      kOutput);
  fork.get_option("--out")->required();
}

/// The words after a command: `called` as in its usage line.
CLI::Option* add_words(CLI::App& app, Raw& raw, const std::string& name,
                       const std::string& called) {
  return add(app, name, raw.options.arguments, called, "")->required();
}

void add_compare(Parser& parser) {
  CLI::App& compare =
      *add_verb(parser, parser.app, Command::compare, "compare", "compare two traces, tap by tap");
  add_words(compare, parser.raw, "traces", "A B")->expected(2);
  add(compare, "--batch", parser.raw.batch, "FILE", "the batch that both were made with, if own");
  add_reports(compare, parser.raw);
}

void add_weights(Parser& parser) {
  Raw& raw = parser.raw;
  CLI::App& weights = *add_noun(parser, "weights", "make, check or copy a checkpoint folder");
  CLI::App& make = *add_verb(parser, weights, Command::weights_make, "make",
                             "make a synthetic checkpoint that from_pretrained opens");
  add(make, "--case", raw.case_name, "NAME|JSON", "the case");
  add(make, "--config", raw.config, "NAME|PATH|JSON", "or a config; its case is made up");
  add(make, "--seed", raw.seed, "N", "another seed");
  add(make, "--layers", raw.options.layers, "N,..", "these layers alone; also embed, head");
  add(make, "--format", raw.format, "NAME",
      "bf16; fp8 with block scales; demo: as DeepSeek's inference demo names it");
  add(make, "--dtype", raw.dtypes, "TYPE", "bfloat16 (default) or float32, of what is not FP8")
      ->expected(1);
  add(make, "--config-style", raw.config_style, "4|5",
      "config.json as released, or as transformers 5 writes it");
  add(make, "--out", raw.out, "DIR", "the folder (required)")->required();
  CLI::App& check = *add_verb(parser, weights, Command::weights_check, "check",
                              "check a checkpoint folder: names, shapes, dtypes, scales, holes");
  add_words(check, raw, "folder", "DIR [FAST_DIR]")->expected(1, 2);
  add_flag(check, "--full", raw.options.full, "read every byte: finite, the values; and a digest",
           "Options");
  add_flag(check, "--time", raw.options.time,
           "read a sample: is a copy on the volume of FAST_DIR (TMPDIR) worth it?", "Options");
  CLI::App& copy = *add_verb(parser, weights, Command::weights_copy, "copy",
                             "copy a checkpoint from a slow volume to a faster one, resumably");
  add_words(copy, raw, "folders", "DIR FAST_DIR")->expected(2);
}

void add_self_check(Parser& parser) {
  CLI::App& check = *add_verb(parser, parser.app, Command::self_check, "selfcheck",
                              "plant known faults into a clean trace: are they caught?");
  add_words(check, parser.raw, "trace", "[TRACE]")->required(false)->expected(0, 1);
}

void add_adapter(Parser& parser) {
  Raw& raw = parser.raw;
  CLI::App& adapter = *add_noun(parser, "adapter", "check a LoRA adapter as peft saves it");
  CLI::App& check = *add_verb(parser, adapter, Command::adapter_check, "check",
                              "check modules, shapes, dtypes, rank and scale of an adapter");
  add_words(check, raw, "folder", "DIR")->expected(1);
  add(check, "--config", raw.config, "NAME|PATH", "of the base model; default tiny");
  add(check, "--case", raw.case_name, "NAME", "the base model is this case's");
  add(check, "--rank", raw.rank, "N", "the rank that every module must have");
  add(check, "--scale", raw.scale, "X", "alpha / rank that every module must have");
  CLI::App& merged = *add_verb(parser, adapter, Command::adapter_merged, "merged",
                               "check a merged checkpoint: base + alpha / rank B A, FP8 too?");
  add_words(merged, raw, "folders", "DIR BASE MERGED")->expected(3);
}

void add_golden(Parser& parser) {
  CLI::App& golden = *add_noun(parser, "golden", "verify, compare or show Hugging Face goldens");
  add_verb(parser, golden, Command::golden_verify, "verify",
           "check hash, layout and provenance of every golden");
  CLI::App& diff =
      *add_verb(parser, golden, Command::golden_diff, "diff", "compare two folders of goldens");
  add_words(diff, parser.raw, "folders", "A B")->expected(2);
  CLI::App& show = *add_verb(parser, golden, Command::golden_show, "show",
                             "show what one golden holds and where it comes from");
  add_words(show, parser.raw, "case", "CASE")->expected(1);
}

void add_report(Parser& parser) {
  Raw& raw = parser.raw;
  Options& o = raw.options;
  CLI::App& report = *add_noun(parser, "report", "render, check or compare report.json");
  CLI::App& render = *add_verb(parser, report, Command::report_render, "render",
                               "render a report again, on stdout or into files");
  add_words(render, raw, "report", "REPORT.json")->expected(1);
  add_reports(render, raw);
  add(render, "--link", o.link, "URL", "where the page is, for the Markdown report", kOutput);
  add(render, "--base", raw.base_report, "REPORT.json",
      "of the tree before the change: what was fixed and broken", kOutput);
  add(render, "--width", raw.width, "N", "columns of the report on stdout; default the terminal's",
      kOutput);
  CLI::App& validate = *add_verb(parser, report, Command::report_validate, "validate",
                                 "check reports against the format");
  add_words(validate, raw, "reports", "REPORT.json ...");
  CLI::App& diff = *add_verb(parser, report, Command::report_diff, "diff",
                             "tell what is fixed, broken, still broken, no longer tested");
  add_words(diff, raw, "reports", "BEFORE.json AFTER.json")->expected(2);
  add(diff, "--md", raw.markdown, "FILE", "write it as Markdown to this file; - is stdout",
      kOutput);
  add(diff, "--fail-on", o.fail_on, "WHEN", "new (default): something got worse; any: AFTER fails",
      kOutput);
}

void add_launch(Parser& parser) {
  Raw& raw = parser.raw;
  CLI::App& launch = *add_verb(parser, parser.app, Command::launch, "launch",
                               "run a command on every rank, with torchrun's variables set");
  add(launch, "--nproc", raw.nproc, "N", "ranks on this machine (required)")->required();
  add(launch, "--nnodes", raw.nnodes, "N", "machines; default 1");
  add(launch, "--node-rank", raw.node_rank, "I", "number of this machine; default 0");
  add(launch, "--master-addr", raw.master_addr, "HOST", "where rank 0 runs; default this machine");
  add(launch, "--master-port", raw.master_port, "PORT", "where the ranks meet; default a free one");
  add(launch, "--timeout", raw.timeout, "SECONDS", "how long ranks wait for one; default 60");
  add_words(launch, raw, "command", "-- COMMAND");
  CLI::App& rank = *add_verb(parser, parser.app, Command::sharded_rank, "sharded-rank", "");
  rank.group("");
  add_words(rank, raw, "plan", "PLAN");
}

/// Its words go to the Python tool as they are.
void add_batch(Parser& parser) {
  std::vector<std::string>& words = parser.raw.options.arguments;
  CLI::App& batch = *add_noun(parser, "batch", "make a batch of real text");
  CLI::App& make = *add_verb(parser, batch, Command::batch_make, "make",
                             "tokens and labels of questions and answers, for --batch");
  const auto pass = [&](const std::string& name, const std::string& called,
                        const std::string& about) {
    const auto keep = [&words, name](const std::string& value) {
      words.push_back(name);
      words.push_back(value);
    };
    return make.add_option_function<std::string>(name, keep, about)->option_text(called);
  };
  pass("--tokenizer", "FILE", "tokenizer.json (required)")->required();
  pass("--text", "FILE", "lines of JSON: question and answer, or text (required)")->required();
  pass("--out", "FILE", "the safetensors file to write (required)")->required();
  pass("--template", "TEXT", "how they are joined; default {question}\\n{answer}");
  pass("--length", "N", "tokens of a row; longer examples are dropped; default the longest");
  pass("--examples", "N", "at most so many");
  pass("--eos", "TOKEN", "a token behind each answer, counted");
  pass("--config", "FILE", "config.json whose vocab_size the tokens must respect");
}

void add_doctor(Parser& parser) {
  Raw& raw = parser.raw;
  CLI::App& doctor = *add_verb(parser, parser.app, Command::doctor, "doctor",
                               "what this machine has and lacks, and what fits");
  add(doctor, "--config", raw.config, "NAME", "for which config; default small");
  add(doctor, "--weights", raw.options.weights, "DIR",
      "the volume of the checkpoint; default here");
  add(doctor, "--python", raw.options.arguments, "PATH",
      "look at this Python alone; repeatable; default all that are found")
      ->allow_extra_args(false);
}

void add_list(Parser& parser) {
  CLI::App& list = *add_verb(parser, parser.app, Command::list, "list",
                             "list suites, cases, taps, dialects, limits, configs");
  add_words(list, parser.raw, "group", "[GROUP]")->required(false)->expected(0, 1);
  add_flag(list, "--json", parser.raw.options.json, "as JSON; the limits only when they are named",
           kOutput);
}

}  // namespace

std::unique_ptr<Parser> make_parser() {
  auto parser = std::make_unique<Parser>();
  CLI::App& app = parser->app;
  app.name("dsv32-verify");
  app.description(kAbout);
  app.formatter(std::make_shared<HelpFormatter>());
  app.footer(kFooter);
  app.allow_extras();  // unknown words are named with a suggestion below
  add_judged(app, parser->raw);
  add_how(app, parser->raw);
  add_reports(app, parser->raw);
  add_talk(app, parser->raw);
  app.add_flag("--list", parser->raw.list, "suites, cases, taps, dialects, limits, configs")
      ->group(kOther);
  app.add_flag("--show-config", parser->raw.show_config, "the config and what follows from it")
      ->group(kOther);
  app.add_flag("-V,--version", parser->raw.version, "versions of the tool and its libraries")
      ->group(kOther);
  add_dump(*parser);
  add_fork(*parser);
  add_compare(*parser);
  add_weights(*parser);
  add_adapter(*parser);
  add_golden(*parser);
  add_launch(*parser);
  add_batch(*parser);
  add_self_check(*parser);
  add_doctor(*parser);
  add_report(*parser);
  add_list(*parser);
  add_later(*parser);
  for (const Verb& verb : parser->verbs) add_talk(*verb.app, parser->raw);
  return parser;
}

}  // namespace dsv32::harness
