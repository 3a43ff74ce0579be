#include "src/io/trace/generated.h"

#include <optional>

#include "src/io/fields.h"
#include "src/io/json.h"
#include "src/io/text.h"
#include "src/model/trace.h"

namespace dsv32::io {
namespace {

/// Nothing for a tensor that this mode does not have.
std::optional<Shape> shape_of(const std::string& name, const Case& c) {
  const int64_t N = c.decoding.steps;
  if (name == "gen.tokens") return Shape{c.B, N};
  if (name == "gen.logits") return Shape{c.B, N, c.config.vocab_size};
  const std::optional<TapName> tap = parse_tap(name);
  if (!tap || !tap->info.is_decision()) return std::nullopt;
  return tap_shape(*tap, c.config, c.B, c.S + N - 1);
}

}  // namespace

Decoding decoding_of(const Metadata& metadata, const Case& c, const std::string& where) {
  const auto found = metadata.find("decoding");
  if (found == metadata.end())
    refuse({.where = where,
            .what = "metadata.decoding",
            .expected = "{\"eos\": ID or null, \"steps\": N}, in mode generate",
            .got = "a missing key",
            .hint = "golden/dump --mode generate writes it"});
  const std::string place = where + ": metadata.decoding";
  const Json json = parse_json(found->second, place);
  if (!json.is_object())
    refuse({.where = where,
            .what = "metadata.decoding",
            .expected = "an object",
            .got = kind_of(json)});
  const Fields fields(json, place);
  Decoding decoding{.steps = fields.integer("steps"), .eos = std::nullopt};
  const int64_t most = c.config.max_position_embeddings - c.S + 1;
  if (decoding.steps < 1 || decoding.steps > most)
    refuse({.where = place,
            .what = "steps",
            .expected = "1.." + std::to_string(most) + ", positions that the model has",
            .got = std::to_string(decoding.steps)});
  if (!fields.find("eos")) return decoding;
  decoding.eos = fields.integer("eos");
  if (*decoding.eos < 0 || *decoding.eos >= c.config.vocab_size)
    refuse({.where = place,
            .what = "eos",
            .expected = "a token, 0.." + std::to_string(c.config.vocab_size - 1) + ", or null",
            .got = std::to_string(*decoding.eos)});
  return decoding;
}

std::string decoding_json(const Decoding& decoding) {
  return canonical_json(
      {{"eos", decoding.eos ? Json(*decoding.eos) : Json()}, {"steps", decoding.steps}});
}

void check_generated(const std::string& name, const TensorEntry& entry, const Case& c,
                     const std::string& where) {
  const std::optional<Shape> shape = shape_of(name, c);
  if (!shape)
    refuse({.where = where,
            .what = "tensor",
            .expected = "gen.tokens, gen.logits, layers.N.topk or layers.N.router.experts, as "
                        "case " +
                        c.name + " has them in mode generate",
            .got = printable(name)});
  const bool integer =
      entry.readable && (entry.dtype == DType::int32 || entry.dtype == DType::int64);
  const bool floating = entry.readable && is_floating(entry.dtype);
  if (name == "gen.logits" ? !floating : !integer)
    refuse({.where = where,
            .what = "tensor " + name + ": dtype",
            .expected = name == "gen.logits" ? "F64, F32, BF16 or F16" : "I32 (or I64)",
            .got = std::string(entry.stored)});
  if (entry.shape != *shape)
    refuse({.where = where,
            .what = "tensor " + name + ": shape",
            .expected = to_string(*shape) + ", as case " + c.name + " with " +
                        std::to_string(c.decoding.steps) + " steps says",
            .got = to_string(entry.shape)});
}

}  // namespace dsv32::io
