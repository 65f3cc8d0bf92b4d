// CRC32C against its standard's vectors and against the plainest program for it, by both ways.
#include "tier/checked_copy.h"

#include <array>
#include <cstring>
#include <random>
#include <string_view>
#include <vector>

#include "check.h"
#include "tier/crc32c.h"

using namespace vmm;

namespace {

using Memory = std::vector<std::byte>;

std::uint32_t naive(const std::byte* from, std::size_t size, std::uint32_t state) {
  for (std::size_t i = 0; i < size; ++i) {
    state ^= std::to_integer<std::uint32_t>(from[i]);
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1) != 0 ? 0x82F63B78u : 0);
  }
  return state;
}

Memory random_bytes(std::size_t size, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Memory out(size);
  for (auto& byte : out) byte = static_cast<std::byte>(random());
  return out;
}

std::uint32_t plain_crc(const Memory& bytes) {
  const std::uint32_t by_table = copy_by_table(nullptr, bytes.data(), bytes.size(), crc32c::begin);
  if (has_crc_instruction())
    CHECK(copy_by_instruction(nullptr, bytes.data(), bytes.size(), crc32c::begin) == by_table);
  return crc32c::end(by_table);
}

Memory counting(int first, int step) {
  Memory out(32);
  for (auto& byte : out) byte = static_cast<std::byte>(first), first += step;
  return out;
}

using Copy = std::uint32_t (*)(std::byte*, const std::byte*, std::size_t, std::uint32_t);

/// Copies from one offset to another, and looks at the bytes beside the copy, too.
void require_copy(Copy copy, const Memory& from, std::size_t offset, std::size_t to_offset,
                  std::size_t size) {
  Memory to(from.size() + 64, std::byte{0xA5});
  const std::uint32_t expected = naive(from.data() + offset, size, 12345);
  CHECK(copy(to.data() + to_offset, from.data() + offset, size, 12345) == expected);
  CHECK(std::memcmp(to.data() + to_offset, from.data() + offset, size) == 0);
  for (std::size_t i = 0; i < to.size(); ++i)
    CHECK((i >= to_offset && i < to_offset + size) || to[i] == std::byte{0xA5});
  CHECK(copy(nullptr, from.data() + offset, size, 12345) == expected);
}

void require_copies(Copy copy) {
  const Memory from = random_bytes(9000, 1);
  for (std::size_t size = 0; size < 70; ++size) require_copy(copy, from, size % 17, size % 19, size);
  for (std::size_t size : {1023, 1024, 1025, 1039, 1040, 1280, 4095, 4096, 4097, 8192, 8900})
    for (std::size_t offset : {0, 1, 7, 16, 63})
      for (std::size_t to_offset : {0, 3, 15, 16, 33}) require_copy(copy, from, offset, to_offset, size);
}

}  // namespace

TEST(the_vectors_of_rfc_3720) {
  CHECK(plain_crc(Memory(32, std::byte{0})) == 0x8A9136AA);
  CHECK(plain_crc(Memory(32, std::byte{0xFF})) == 0x62A8AB43);
  CHECK(plain_crc(counting(0, 1)) == 0x46DD794E);
  CHECK(plain_crc(counting(31, -1)) == 0x113FDB5C);
  const std::string_view digits = "123456789";
  Memory bytes(digits.size());
  std::memcpy(bytes.data(), digits.data(), digits.size());
  CHECK(plain_crc(bytes) == 0xE3069283);
}

TEST(copies_of_odd_sizes_and_alignments_by_the_table) { require_copies(copy_by_table); }

TEST(copies_of_odd_sizes_and_alignments_by_the_instruction) {
  if (has_crc_instruction()) require_copies(copy_by_instruction);
}

TEST(a_page_of_two_mebibytes) {
  const Memory from = random_bytes(std::size_t{2} << 20, 2);
  const std::uint32_t expected = naive(from.data(), from.size(), crc32c::begin);
  CHECK(copy_by_table(nullptr, from.data(), from.size(), crc32c::begin) == expected);
  Memory to(from.size());
  CHECK(copy_by_instruction(to.data(), from.data(), from.size(), crc32c::begin) == expected);
  CHECK(to == from);
}

TEST(the_seed_comes_before_the_bytes) {
  const Memory bytes = random_bytes(5000, 3);
  const std::uint64_t seed = 0x0123456789ABCDEF;
  Memory both(sizeof seed);
  std::memcpy(both.data(), &seed, sizeof seed);
  both.insert(both.end(), bytes.begin(), bytes.end());
  CHECK(checksum(bytes.data(), bytes.size(), seed) == plain_crc(both));
  Memory to(bytes.size());
  CHECK(checked_copy(to.data(), bytes.data(), bytes.size(), seed) == plain_crc(both));
  CHECK(to == bytes);
}

TEST(any_bit_of_seed_and_bytes_changes_the_checksum) {
  Memory bytes = random_bytes(4096, 4);
  const std::uint32_t right = checksum(bytes.data(), bytes.size(), 7);
  for (int bit = 0; bit < 64; ++bit)
    CHECK(checksum(bytes.data(), bytes.size(), 7 ^ (std::uint64_t{1} << bit)) != right);
  for (std::size_t bit = 0; bit < bytes.size() * 8; bit += 61) {
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    CHECK(checksum(bytes.data(), bytes.size(), 7) != right);
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
  }
}

TEST(several_copies_are_as_one_after_the_other) {
  const Memory from = random_bytes(11 * 4096 + 64, 5);
  for (std::size_t size : {64, 100, 4096})
    for (std::size_t offset : {0, 16, 3})
      for (std::size_t count = 0; count < 10; ++count)
        for (bool copies : {true, false}) {
          Memory to(from.size());
          std::byte* aligned =
              to.data() + (16 - reinterpret_cast<std::uintptr_t>(to.data()) % 16) % 16 + offset;
          std::vector<CheckedCopy> all;
          for (std::size_t i = 0; i < count; ++i)
            all.push_back({copies ? aligned + i * 4112 : nullptr, from.data() + i * 4097, i * 99, 0});
          checked_copies(all, size);
          for (const CheckedCopy& each : all) {
            CHECK(each.checksum == checksum(each.from, size, each.seed));
            CHECK(!copies || std::memcmp(each.to, each.from, size) == 0);
          }
        }
}

TEST(copies_and_checksums_may_come_together) {
  const Memory from = random_bytes(4 * 4096, 6);
  alignas(16) static std::array<std::byte, 4 * 4096> to;
  std::vector<CheckedCopy> all;
  for (std::size_t i = 0; i < 4; ++i)
    all.push_back({i % 2 == 0 ? to.data() + i * 4096 : nullptr, from.data() + i * 4096, i, 0});
  checked_copies(all, 4096);
  for (const CheckedCopy& each : all) {
    CHECK(each.checksum == checksum(each.from, 4096, each.seed));
    CHECK(each.to == nullptr || std::memcmp(each.to, each.from, 4096) == 0);
  }
}
