#include "src/io/io.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 20;  // B * S

/// input_ids gives [B,S]; every other tensor must have the same shape.
void check_entry(const std::string& name, const TensorEntry& entry, const Shape* shape,
                 const std::string& where) {
  if (!entry.readable || entry.dtype != DType::int64)
    refuse({.where = where,
            .what = name + ": dtype",
            .expected = "I64",
            .got = std::string(entry.stored)});
  const bool good = shape ? entry.shape == *shape : entry.shape.size() == 2;
  if (!good)
    refuse({.where = where,
            .what = name + ": shape",
            .expected = shape ? to_string(*shape) + ", as input_ids" : "[B,S]",
            .got = to_string(entry.shape)});
}

void check_names(const SafetensorsFile& file, const std::string& where) {
  for (const auto& [name, entry] : file.tensors())
    if (name != "input_ids" && name != "attention_mask" && name != "labels")
      refuse({.where = where,
              .what = "tensor",
              .expected = "input_ids, attention_mask, labels",
              .got = printable(name),
              .hint = "position ids follow from the mask"});
  if (!file.tensors().contains("input_ids"))
    refuse({.where = where,
            .what = "tensor",
            .expected = "input_ids",
            .got = "no tensor of that name"});
}

std::vector<int64_t> values(const SafetensorsFile& file, const std::string& name) {
  const HostTensor tensor = file.read(name);
  const auto data = tensor.data<int64_t>();
  return {data.begin(), data.end()};
}

}  // namespace

Batch read_batch(const fs::path& path, const ModelConfig& config) {
  const SafetensorsFile file(path);
  const std::string where = path.string();
  check_names(file, where);
  const TensorEntry& ids = file.tensors().at("input_ids");
  check_entry("input_ids", ids, nullptr, where);
  for (const auto& [name, entry] : file.tensors()) check_entry(name, entry, &ids.shape, where);
  if (const int64_t tokens = numel(ids.shape); tokens > kMaxTokens)
    refuse({.where = where,
            .what = "input_ids: shape",
            .expected = "at most " + std::to_string(kMaxTokens) + " tokens",
            .got = std::to_string(tokens)});
  if (ids.shape[1] < 2)
    refuse({.where = where,
            .what = "input_ids: shape",
            .expected = "at least two tokens in a row, so that one predicts another",
            .got = to_string(ids.shape)});
  Batch batch{.B = ids.shape[0], .S = ids.shape[1]};
  batch.input_ids = values(file, "input_ids");
  batch.mask_given = file.tensors().contains("attention_mask");
  batch.attention_mask = batch.mask_given ? values(file, "attention_mask")
                                          : std::vector<int64_t>(batch.input_ids.size(), 1);
  const bool labelled = file.tensors().contains("labels");
  batch.labels = labelled ? values(file, "labels") : batch.input_ids;
  // Ids and mask are checked before anything is computed from them.
  batch.position_ids.assign(batch.input_ids.size(), 0);
  validate(batch, config, where);
  set_positions(batch);
  if (!labelled) set_labels(batch);
  batch.digest = sha256_file(path);
  return batch;
}

Batch batch_of_case(const Case& c, const std::optional<fs::path>& file, const std::string& where) {
  const std::string named = "the batch of sha256 " + c.batch;
  if (!file && !c.batch.empty())
    refuse({.where = where,
            .what = "case.batch",
            .expected = named,
            .got = "no batch file",
            .hint = "name the file with --batch FILE"});
  if (!file) return make_batch(c);
  Batch batch = read_batch(*file, c.config);
  if (!c.batch.empty() && batch.digest != c.batch)
    refuse({.where = file->string(),
            .what = "batch",
            .expected = named + ", which " + where + " was made with",
            .got = "sha256 " + batch.digest});
  set_positions(batch, c.position_offset);
  return batch;
}

}  // namespace dsv32::io
