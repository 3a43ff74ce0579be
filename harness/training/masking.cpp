#include "harness/training/masking.h"

#include <algorithm>
#include <cmath>

#include "harness/judge/compare.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

/// Columns at the end of each row that are masked: as many as the prompt has at the start.
int64_t tail_of(const Batch& batch) { return batch.S / 4; }

void mask_tail(Batch& batch) {
  for (int64_t b = 0; b < batch.B; ++b)
    for (int64_t s = batch.S - tail_of(batch); s < batch.S; ++s)
      batch.labels[b * batch.S + s] = kIgnoredLabel;
}

/// Other tokens in the masked columns; labels stay.
Batch with_other_tail(Batch batch, int64_t vocab_size) {
  for (int64_t b = 0; b < batch.B; ++b)
    for (int64_t s = batch.S - tail_of(batch); s < batch.S; ++s) {
      int64_t& id = batch.input_ids[b * batch.S + s];
      id = (id + vocab_size / 2) % vocab_size;
    }
  return batch;
}

/// -log softmax of one row at one token, in double.
double cross_entropy(const HostTensor& logits, int64_t row, int64_t token) {
  const int64_t vocab = logits.shape().back();
  double largest = -INFINITY, sum = 0;
  for (int64_t v = 0; v < vocab; ++v) largest = std::max(largest, logits.at(row * vocab + v));
  for (int64_t v = 0; v < vocab; ++v) sum += std::exp(logits.at(row * vocab + v) - largest);
  return largest + std::log(sum) - logits.at(row * vocab + token);
}

/// Mean over the positions whose next label counts.
double expected_loss(const Batch& batch, const HostTensor& logits) {
  double sum = 0;
  int64_t count = 0;
  for (int64_t b = 0; b < batch.B; ++b)
    for (int64_t s = 0; s + 1 < batch.S; ++s) {
      const int64_t label = batch.labels[b * batch.S + s + 1];
      if (label == kIgnoredLabel) continue;
      sum += cross_entropy(logits, b * batch.S + s, label);
      ++count;
    }
  return count == 0 ? 0 : sum / static_cast<double>(count);
}

class Masking {
 public:
  Masking(const TrainingJob& job, const Implementation& model, const RunOptions& options,
          const Subject& subject)
      : job_(job), model_(model), options_(options), subject_(subject) {}

  std::vector<Verdict> run() {
    judge_mean();
    judge_tail();
    return std::move(verdicts_);
  }

 private:
  /// What the judged side makes of a batch: a planted bug may count what it must not.
  Trace run_on(Batch batch, bool backward, const Trace* decisions) const {
    if (job_.bug == training::Bug::prompt_not_masked) batch.labels = batch.input_ids;
    RunOptions options = options_;
    options.backward = backward;
    if (decisions != nullptr) {
      options.feeding = Feeding::forced;
      options.feed = decisions;
    }
    return model_.run(batch, options);
  }

  void put(const std::string& name, Measure measure, int64_t checked, const std::string& note) {
    Verdict verdict;
    verdict.subject = subject_;
    verdict.tap = name;
    verdict.mode = Mode::forced;
    verdict.checked = checked;
    verdict.measures.push_back(std::move(measure));
    verdict.note = note;
    settle(verdict);
    verdicts_.push_back(std::move(verdict));
  }

  void judge_mean() {
    const Batch batch = make_batch(job_.the_case);
    const Trace run = run_on(batch, false, nullptr);
    const double expected = expected_loss(batch, *run.find("logits"));
    const int64_t counted = std::count_if(batch.labels.begin(), batch.labels.end(),
                                          [](int64_t label) { return label != kIgnoredLabel; });
    put(rule_name("labels.mean"),
        by_limit("sft.masked_tokens", relative(run.find("loss.lm")->at(0), expected)), counted, "");
  }

  void judge_tail() {
    Batch batch = make_batch(job_.the_case);
    const int64_t vocab = job_.the_case.config.vocab_size;
    const Trace counted = run_on(batch, false, nullptr);
    const Trace moved = run_on(with_other_tail(batch, vocab), false, nullptr);
    mask_tail(batch);
    const Trace before = run_on(batch, true, nullptr);
    const Trace after = run_on(with_other_tail(batch, vocab), true, &before);
    const int64_t tokens = batch.B * tail_of(batch);
    put(rule_name("labels.masked.loss"),
        by_limit("sft.masked_tokens",
                 relative(after.find("loss.lm")->at(0), before.find("loss.lm")->at(0))),
        tokens, "");
    refuse_vacuous(relative(moved.find("loss.lm")->at(0), counted.find("loss.lm")->at(0)));
    judge_gradients(before, after, tokens);
  }

  /// Where the same tokens count, they must change the loss.
  void refuse_vacuous(double effect) {
    Verdict& verdict = verdicts_.back();
    if (verdict.trust != Trust::pass || effect > verdict.measures.front().limit) return;
    verdict.trust = Trust::vacuous;
    verdict.note = "these tokens change nothing even where they count";
  }

  void judge_gradients(const Trace& before, const Trace& after, int64_t tokens) {
    double largest = 0;
    std::string where;
    for (const std::string& name : before.names()) {
      if (name.rfind("grad.", 0) != 0) continue;
      const double gap = relative(*after.find(name), *before.find(name));
      if (gap <= largest) continue;
      largest = gap;
      where = name;
      if (std::isnan(gap)) break;
    }
    put(rule_name("labels.masked.gradients"), by_limit("sft.masked_tokens", largest), tokens,
        where.empty() ? "" : "largest in " + where);
  }

  const TrainingJob& job_;
  const Implementation& model_;
  const RunOptions& options_;
  const Subject& subject_;
  std::vector<Verdict> verdicts_;
};

}  // namespace

std::vector<Verdict> judge_masking(const TrainingJob& job, const Implementation& model,
                                   const RunOptions& options, const Subject& subject) {
  return Masking(job, model, options, subject).run();
}

}  // namespace dsv32::harness
