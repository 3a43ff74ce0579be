#pragma once

#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include "golden/reader/golden.h"

/// This header leads from a name to bytes whose hash was checked: both readers of goldens begin so.
namespace dsv32::golden {

/// Debian's HDF5 is built without thread safety: hold this while an Hdf5File lives.
std::mutex& hdf5_mutex();

/// True for a training golden: an entry of kind `train`, named SUITE.CASE.
bool is_training(const ManifestEntry& entry);
/// Finds an entry; null when there is none.
const ManifestEntry* find_entry(const std::vector<ManifestEntry>& entries, const std::string& name,
                                bool training);
/// A golden of this name is in the manifest and its file is in the directory.
bool is_there(const std::filesystem::path& directory, const std::string& name, bool training);
/// Throws Error (usage) that lists the names there are and guesses the one that was meant.
[[noreturn]] void refuse_unknown(const std::vector<ManifestEntry>& entries, const std::string& name,
                                 bool training);

/// Reads the whole file, once, and only when it is the one of the manifest. HDF5 sees these bytes
/// and no file: nothing can change between the hash and the open. Throws Error (artefact).
std::string pinned_bytes(const std::filesystem::path& path, const ManifestEntry& entry);

}  // namespace dsv32::golden
