#include "src/model/philox.h"

#include "src/model/philox_block.h"

namespace dsv32 {

uint64_t fnv1a64(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

std::array<uint64_t, 4> philox4x64(std::array<uint64_t, 4> counter, std::array<uint64_t, 2> key) {
  return philox4x64_block(counter, key);
}

uint16_t PhiloxStream::lane16(uint64_t i) const {
  return static_cast<uint16_t>(block(1 + i / 16)[i % 16 / 4] >> (16 * (i % 4)));
}

uint32_t PhiloxStream::lane32(uint64_t i) const {
  return static_cast<uint32_t>(block(1 + i / 8)[i % 8 / 2] >> (32 * (i % 2)));
}

}  // namespace dsv32
