// The strict safetensors reader and the writer; whole files and sha256.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <random>

#include "suites/kit/io_files.h"

namespace dsv32::suites {
namespace {

using io::SafetensorsFile;
using io::TensorEntry;

constexpr size_t kFileScale = size_t{1}
                              << 20;  // hostile files are small: nothing near this may be allocated

std::string open_refusal(const std::string& bytes) {
  const Folder folder;
  put(folder / "x.safetensors", bytes);
  reset_allocations();
  const std::string text = refusal([&] { SafetensorsFile(folder / "x.safetensors"); });
  EXPECT_LT(largest_allocation(), kFileScale);
  return text;
}

std::string header_refusal(const std::string& header, size_t data_bytes) {
  return open_refusal(safetensors(header, data_bytes));
}

std::map<std::string, TensorEntry> tensors_of(const std::string& header, size_t data_bytes) {
  const Folder folder;
  put(folder / "x.safetensors", safetensors(header, data_bytes));
  return SafetensorsFile(folder / "x.safetensors").tensors();
}

struct Hostile {
  const char* rule;
  std::string header;
  size_t data_bytes;
  std::vector<std::string> says;
};

// Rules of the format's own reader and the stricter ones of this project.
const std::vector<Hostile>& hostile_headers() {
  static const std::vector<Hostile> list = {
      {"not JSON", "{", 0, {"JSON"}},
      {"not an object", "[]", 0, {"a JSON object"}},
      {"blanks only", "   ", 0, {"blanks only"}},
      {"text after the object", "{} x", 0, {"JSON"}},
      {"two objects", "{}{}", 0, {"JSON"}},
      {"NUL padding", std::string("{}\0\0", 4), 0, {"NUL at byte 2"}},
      {"byte order mark", "\xef\xbb\xbf{}", 0, {"a JSON object"}},
      {"bad UTF-8",
       "{\"\xff\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}",
       4,
       {"JSON"}},
      {"lone surrogate",
       R"({"\ud800":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})",
       4,
       {"JSON"}},
      {"comment", "{/**/}", 0, {"JSON"}},
      {"duplicate name",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2,
       {"a twice"}},
      {"duplicate after unescaping",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2,
       {"a twice"}},
      {"two __metadata__",
       R"({"__metadata__":{},"__metadata__":{}})",
       0,
       {"__metadata__", "a second one"}},
      {"duplicate metadata key", R"({"__metadata__":{"k":"1","k":"2"}})", 0, {"k twice"}},
      {"duplicate field",
       R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
       1,
       {"tensor a", "dtype twice"}},
      {"metadata not text",
       R"({"__metadata__":{"k":1}})",
       0,
       {"__metadata__.k", "a string", "got 1"}},
      {"metadata object", R"({"__metadata__":{"k":{}}})", 0, {"__metadata__.k", "a string"}},
      {"metadata list", R"({"__metadata__":[]})", 0, {"an object"}},
      {"metadata null", R"({"__metadata__":null})", 0, {"an object", "null"}},
      {"tensor null", R"({"a":null})", 0, {"tensor a", "an object"}},
      {"tensor list", R"({"a":[]})", 0, {"tensor a", "an object"}},
      {"empty name",
       R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
       1,
       {"an empty one"}},
      {"missing dtype",
       R"({"a":{"shape":[1],"data_offsets":[0,1]}})",
       1,
       {"tensor a", "dtype, shape and data_offsets"}},
      {"missing shape",
       R"({"a":{"dtype":"U8","data_offsets":[0,1]}})",
       1,
       {"dtype, shape and data_offsets"}},
      {"missing offsets",
       R"({"a":{"dtype":"U8","shape":[1]}})",
       1,
       {"dtype, shape and data_offsets"}},
      {"empty tensor object", R"({"a":{}})", 0, {"dtype, shape and data_offsets"}},
      {"unknown field",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})",
       1,
       {"got x"}},
      {"unknown dtype",
       R"({"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})",
       4,
       {"tensor a: dtype", "got F31"}},
      {"dtype in lower case",
       R"({"a":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}})",
       4,
       {"got f32"}},
      {"dtype a number",
       R"({"a":{"dtype":32,"shape":[1],"data_offsets":[0,4]}})",
       4,
       {"dtype", "a string"}},
      {"shape -1",
       R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})",
       4,
       {"shape", "unsigned", "got -1"}},
      {"shape -0",
       R"({"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}})",
       0,
       {"shape", "unsigned"}},
      {"shape 1.0",
       R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})",
       4,
       {"shape", "got 1.0"}},
      {"shape 1e0",
       R"({"a":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}})",
       4,
       {"shape", "got 1e0"}},
      {"shape beyond 64 bits",
       R"({"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}})",
       4,
       {"shape", "18446744073709551616"}},
      {"shape beyond a double",
       R"({"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}})",
       4,
       {"one well-formed"}},
      {"dimension beyond 2^48",
       R"({"a":{"dtype":"U8","shape":[281474976710657,0],"data_offsets":[0,0]}})",
       0,
       {"2^48"}},
      {"seventeen dimensions",
       R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})",
       1,
       {"at most 16"}},
      {"shape a string",
       R"({"a":{"dtype":"U8","shape":"1","data_offsets":[0,1]}})",
       1,
       {"shape", "unsigned"}},
      {"shape nested",
       R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})",
       1,
       {"shape", "a list"}},
      {"shape an object",
       R"({"a":{"dtype":"U8","shape":{},"data_offsets":[0,1]}})",
       1,
       {"shape", "an object"}},
      {"product overflows",
       R"({"a":{"dtype":"U8","shape":[281474976710656,281474976710656],"data_offsets":[0,0]}})",
       0,
       {"within 64 bits"}},
      {"product overflows before a zero",
       R"({"a":{"dtype":"U8","shape":[281474976710656,281474976710656,0],"data_offsets":[0,0]}})",
       0,
       {"within 64 bits"}},
      {"bits overflow",
       R"({"a":{"dtype":"F64","shape":[281474976710656,65535],"data_offsets":[0,8]}})",
       8,
       {"within 63 bits"}},
      {"half a byte",
       R"({"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}})",
       1,
       {"whole bytes"}},
      {"huge tensor without data",
       R"({"a":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}})",
       8,
       {"truncated"}},
      {"one offset", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1]}})", 1, {"two numbers"}},
      {"three offsets",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})",
       1,
       {"two numbers"}},
      {"negative offset",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}})",
       1,
       {"data_offsets", "got -1"}},
      {"offsets backwards",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})",
       1,
       {"begin <= end"}},
      {"wrong size",
       R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})",
       4,
       {"8 bytes", "got 4"}},
      {"hole at the start",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2,
       {"a hole"}},
      {"hole",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
       3,
       {"tensor b", "a hole"}},
      {"overlap",
       R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3,
       {"tensor b", "an overlap"}},
      {"same place twice",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
       1,
       {"an overlap"}},
      {"trailing byte",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
       2,
       {"trailing bytes"}},
      {"missing byte",
       R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
       1,
       {"truncated"}},
      {"data without tensors", "{}", 1, {"trailing bytes"}}};
  return list;
}

TEST(SelfSafetensors, RefusesEveryBrokenHeader) {
  for (const Hostile& hostile : hostile_headers()) {
    SCOPED_TRACE(hostile.rule);
    const std::string text = header_refusal(hostile.header, hostile.data_bytes);
    EXPECT_TRUE(has(text, hostile.says)) << text;
  }
}

TEST(SelfSafetensors, RefusesBrokenLengths) {
  EXPECT_TRUE(has(open_refusal(""), {"8 bytes or more", "got 0 bytes"}));
  EXPECT_TRUE(has(open_refusal(std::string(7, '\0')), {"got 7 bytes"}));
  EXPECT_TRUE(has(open_refusal(std::string(8, '\0')), {"blanks only"}));
  EXPECT_TRUE(has(open_refusal(std::string(8, '\xff')), {"at most 100000000"}));
  const uint64_t limit = 100'000'000;
  for (uint64_t length : {limit, limit + 1}) {
    const std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
    EXPECT_TRUE(has(open_refusal(bytes + "{}"), {"header length"})) << length;
  }
}

TEST(SelfSafetensors, RefusesNamesAndMetadataBeyondTheirLimits) {
  const auto named = [](size_t size) {
    return R"({")" + std::string(size, 'n') +
           R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  };
  EXPECT_EQ(tensors_of(named(4096), 1).size(), 1U);
  EXPECT_TRUE(has(header_refusal(named(4097), 1), {"at most 4096 bytes", "got 4097"}));
  const std::string large = R"({"__metadata__":{"k":")" + std::string((1 << 20), 'v') + R"("}})";
  const Folder folder;
  put(folder / "x", safetensors(large, 0));
  EXPECT_TRUE(
      has(refusal([&] { SafetensorsFile(folder / "x"); }), {"__metadata__", "at most 1048576"}));
}

TEST(SelfSafetensors, RefusesDeepNestingAtOnce) {
  const std::string deep(500'000, '[');
  EXPECT_TRUE(has(header_refusal(R"({"a":{"dtype":"U8","shape":)" + deep, 0), {"shape", "a list"}));
}

TEST(SelfSafetensors, RefusesEveryTruncationOfAFile) {
  const std::string whole =
      safetensors(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  for (size_t n = 0; n < whole.size(); ++n) {
    SCOPED_TRACE(n);
    EXPECT_FALSE(open_refusal(whole.substr(0, n)).empty());
  }
}

TEST(SelfSafetensors, RefusesWhatIsNotAFile) {
  const Folder folder;
  EXPECT_TRUE(has(refusal([&] { SafetensorsFile(folder / "none"); }), {"No such file"}));
  EXPECT_TRUE(has(refusal([&] { SafetensorsFile{folder.path()}; }), {"a directory"}));
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_TRUE(has(refusal([&] { SafetensorsFile(folder / "pipe"); }), {"a regular file"}));
}

TEST(SelfSafetensors, EscapesHostileNames) {
  const std::string text =
      header_refusal(R"({"\u001b[31m<b>":{"dtype":"X","shape":[],"data_offsets":[0,0]}})", 0);
  EXPECT_TRUE(has(text, {"\\x1b[31m<b>"})) << text;
}

TEST(SelfSafetensors, AcceptsWhatTheFormatAllows) {
  EXPECT_TRUE(tensors_of("{}", 0).empty());
  EXPECT_TRUE(tensors_of(" \n{} \t", 0).empty());
  EXPECT_EQ(tensors_of(R"({"s":{"dtype":"F64","shape":[],"data_offsets":[0,8]}})", 8).at("s").shape,
            Shape{});
  const auto zero = tensors_of(
      R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]}})",
      1);
  EXPECT_EQ(zero.at("a").shape, (Shape{0, 5}));
  const auto fp8 = tensors_of(R"({"q":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}})", 3);
  EXPECT_FALSE(fp8.at("q").readable);
  EXPECT_EQ(fp8.at("q").stored, "F8_E4M3");
}

TEST(SelfSafetensors, RefusesToReadATypeThatItDoesNotKnow) {
  const Folder folder;
  put(folder / "x",
      safetensors(R"({"q":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}})", 3));
  const SafetensorsFile file(folder / "x");
  EXPECT_TRUE(has(refusal([&] { file.read("q"); }), {"tensor q: dtype", "F8_E4M3"}));
  EXPECT_TRUE(has(refusal([&] { file.read("p"); }), {"expected p", "no tensor of that name"}));
}

TEST(SelfSafetensors, NoticesAFileThatChanges) {
  const Folder folder;
  put(folder / "x", safetensors(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 4));
  const SafetensorsFile file(folder / "x");
  fs::resize_file(folder / "x", fs::file_size(folder / "x") - 1);
  EXPECT_TRUE(has(refusal([&] { file.read("a"); }), {"while it was read"}));
  fs::resize_file(folder / "x", fs::file_size(folder / "x") + 1);
  EXPECT_TRUE(has(refusal([&] { file.read("a"); }), {"stays as it is"}));
}

std::vector<std::pair<std::string, HostTensor>> every_type() {
  std::vector<std::pair<std::string, HostTensor>> out;
  const std::vector<double> values = {0, 1, 2, 3, 100};
  for (DType dtype : {DType::uint8, DType::bfloat16, DType::float32, DType::float16, DType::int64,
                      DType::int32, DType::float64}) {
    out.push_back(
        {"t." + std::string(to_string(dtype)), HostTensor::from_doubles(dtype, {5}, values)});
  }
  out.push_back({"empty", HostTensor(DType::float32, {0, 3})});
  out.push_back({"scalar", HostTensor::from_doubles(DType::float64, {}, std::vector<double>{1.5})});
  return out;
}

TEST(SelfSafetensors, ReadsWhatItWrote) {
  const Folder folder;
  const auto tensors = every_type();
  put_tensors(folder / "x", {{"key", "value \"quoted\"\n"}}, tensors);
  const SafetensorsFile file(folder / "x");
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"key", "value \"quoted\"\n"}}));
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) EXPECT_TRUE(file.read(name).identical(tensor)) << name;
}

TEST(SelfSafetensors, AlignsEveryTensorToItsElement) {
  const Folder folder;
  put_tensors(folder / "x", {}, every_type());
  const SafetensorsFile file(folder / "x");
  uint64_t header = 0;
  std::memcpy(&header, bytes_of(folder / "x").data(), sizeof header);
  EXPECT_EQ(header % 8, 0U);
  for (const auto& [name, entry] : file.tensors()) {
    EXPECT_EQ(entry.begin % static_cast<uint64_t>(item_size(entry.dtype)), 0U) << name;
  }
}

TEST(SelfSafetensors, ReadsARange) {
  const Folder folder;
  put_tensors(folder / "x", {}, {{"a", int64_tensor({2, 3}, {1, 2, 3, 4, 5, 6})}});
  const SafetensorsFile file(folder / "x");
  EXPECT_TRUE(file.read_range("a", 3, {1, 3}).identical(int64_tensor({1, 3}, {4, 5, 6})));
  EXPECT_TRUE(
      has(refusal([&] { file.read_range("a", 4, {3}); }, ExitCode::internal), {"within 6"}));
}

TEST(SelfSafetensors, WriterLeavesNothingBehindUntilFinished) {
  const Folder folder;
  put(folder / "x", "old");
  {
    io::SafetensorsWriter writer(folder / "x", {}, {{"a", {.dtype = DType::uint8, .shape = {1}}}});
    EXPECT_TRUE(has(refusal([&] { writer.finish(); }, ExitCode::internal), {"1 tensors", "got 0"}));
    EXPECT_TRUE(
        has(refusal([&] { writer.append(HostTensor(DType::uint8, {2})); }, ExitCode::internal),
            {"uint8[1]", "uint8[2]"}));
  }
  EXPECT_EQ(bytes_of(folder / "x"), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
}

TEST(SelfSafetensors, OnlyEverThrowsErrorOnMutatedFiles) {
  const Folder folder;
  put_tensors(folder / "seed", {{"k", "v"}}, every_type());
  const std::string seed = bytes_of(folder / "seed");
  const std::string alphabet = "{}[]:,\"0123456789-eE.\\u\xff" + std::string(1, '\0');
  std::mt19937_64 random(20260101);
  int opened = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string bytes = seed;
    for (uint64_t n = 1 + random() % 4; n > 0; --n) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          bytes[at] = static_cast<char>(random());
          break;
        case 2:
          bytes.erase(at, 1 + random() % 8);
          break;
        default:
          bytes.insert(at, 1, alphabet[random() % alphabet.size()]);
      }
      if (bytes.empty()) bytes = "x";
    }
    put(folder / "x", bytes);
    reset_allocations();
    try {
      const SafetensorsFile file(folder / "x");
      for (const auto& [name, entry] : file.tensors()) {
        if (entry.readable) file.read(name);
      }
      ++opened;
    } catch (const Error& error) {
      ASSERT_EQ(static_cast<int>(error.code()), static_cast<int>(ExitCode::artefact))
          << error.what();
    }
    ASSERT_LT(largest_allocation(), kFileScale) << "round " << round;
  }
  EXPECT_GT(opened, 0);  // mutations in the data section keep the file valid
}

// FIPS 180-4 examples, and lengths around the block and padding edges against each other.
TEST(SelfFiles, Sha256KnowsItsTestVectors) {
  EXPECT_EQ(io::sha256_hex("", 0),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(io::sha256_hex("abc", 3),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  EXPECT_EQ(io::sha256_hex(two.data(), two.size()),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  const std::string million(1'000'000, 'a');
  EXPECT_EQ(io::sha256_hex(million.data(), million.size()),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(SelfFiles, Sha256OfAFileIsThatOfItsBytes) {
  const Folder folder;
  for (size_t size : {0, 55, 56, 63, 64, 65, (1 << 20) - 1, (1 << 20) + 1}) {
    const std::string bytes(size, 'q');
    put(folder / "x", bytes);
    EXPECT_EQ(io::sha256_file(folder / "x"), io::sha256_hex(bytes.data(), bytes.size())) << size;
  }
}

TEST(SelfFiles, LargeOnesAreNotRead) {
  const Folder folder;
  put(folder / "x", "second");
  EXPECT_TRUE(has(refusal([&] { io::read_file(folder / "x", 5); }), {"at most 5 bytes", "got 6"}));
}

}  // namespace
}  // namespace dsv32::suites
