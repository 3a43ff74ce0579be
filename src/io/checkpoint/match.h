#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "src/io/checkpoint/files.h"

namespace dsv32::io {

/// Rows of a stored matrix that are all or a part of one tensor. A vector is a matrix of one
/// column.
struct Piece {
  const SafetensorsFile* file = nullptr;
  std::string name;   // as stored
  std::string scale;  // as stored; "": no FP8
  const SafetensorsFile* scale_file = nullptr;
  int64_t matrix = 0;       // of a stack of matrices
  int64_t stored_rows = 0;  // of each of them
  int64_t columns = 0;
  int64_t from = 0;  // its first row there
  int64_t rows = 0;
  int64_t row = 0, column = 0;  // where its first value lies in the tensor
};

/// Where one tensor of the unfused layout lies: mostly in one piece.
using Source = std::vector<Piece>;
using Sources = std::unordered_map<std::string, Source>;

/// What is wrong with the tensors of a checkpoint, all of it.
struct Findings {
  std::vector<std::string> missing, unexpected, twice, misshapen, wrong_type, scales_missing,
      scales_unused, scales_bad;
};
/// All of it in one text; an empty text: nothing is wrong.
std::string complaints(const Findings& findings);

/// The tensors of a model, found in its files.
struct Match {
  Sources sources;
  Findings findings;
  bool has_fp8 = false;
  std::vector<std::string> notes;  // what is left out, and why
};

/// Matches the tensors of the model with those of the files, whose FP8 blocks are of `format`.
/// `needed`: names that must be there; empty: every one of the model.
Match match_checkpoint(const CheckpointFiles& files, const ModelConfig& config,
                       const Fp8Config& format, const std::set<std::string>& needed);

/// Scales of block rows [begin, end) of a piece's matrix, [end-begin, ceil(columns/block)].
HostTensor read_scales(const Piece& piece, const Fp8Config& format, int64_t begin, int64_t end);

}  // namespace dsv32::io
