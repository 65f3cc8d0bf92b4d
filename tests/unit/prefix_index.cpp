// The index of tokens, against a naive one that compares all of them.
#include "policy/prefix_index.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <random>

#include "check.h"

namespace {

std::atomic<std::int64_t> in_use{0};  // allocations that were not given back

}  // namespace

// Not inlined, or the compiler takes these for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t size) {
  void* made = std::malloc(size);
  if (made == nullptr) throw std::bad_alloc();
  ++in_use;
  return made;
}
[[gnu::noinline]] void operator delete(void* made) noexcept {
  in_use -= made != nullptr;
  std::free(made);
}
[[gnu::noinline]] void operator delete(void* made, std::size_t) noexcept { operator delete(made); }

using namespace vmm;

namespace {

using Token = PrefixIndex::Token;
using TokenList = std::vector<Token>;
constexpr std::size_t block = PrefixIndex::block_tokens;
constexpr std::uint32_t slot_count = 9;

struct Found {
  std::uint64_t length;
  std::vector<std::uint32_t> slots;  // in ascending order
  bool operator==(const Found&) const = default;
};

std::vector<Found> find(PrefixIndex& index, const std::string& salt, const TokenList& tokens,
                        std::size_t at_most = 1'000'000) {
  std::vector<Found> out;
  index.find(salt, tokens, [&](Tokens length, std::vector<std::uint32_t>& slots) {
    std::ranges::sort(slots);
    out.push_back({length.count, slots});
    return out.size() < at_most;
  });
  return out;
}

TokenList numbers(std::size_t count, Token first = 0) {
  TokenList out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = first + static_cast<Token>(i);
  return out;
}

/// Says for each slot which tokens it holds.
struct Naive {
  struct Path {
    std::string salt;
    TokenList tokens;
  };

  std::vector<Found> find(const std::string& salt, const TokenList& wanted) const {
    std::vector<Found> out;
    for (std::size_t length = wanted.size() - wanted.size() % block; length != 0; length -= block) {
      std::vector<std::uint32_t> found;
      for (std::uint32_t slot = 0; slot < slot_count; ++slot)
        if (slots[slot] && slots[slot]->salt == salt && common(slots[slot]->tokens, wanted) == length)
          found.push_back(slot);
      if (!found.empty()) out.push_back({length, found});
    }
    return out;
  }
  /// Tokens in whole blocks.
  static std::size_t common(const TokenList& a, const TokenList& b) {
    const auto [end, unused] = std::ranges::mismatch(a, b);
    const auto same = static_cast<std::size_t>(end - a.begin());
    return same - same % block;
  }

  std::array<std::optional<Path>, slot_count> slots;
};

/// A course of random calls, of the index and of the naive one.
class Course {
 public:
  explicit Course(unsigned seed) : random_(seed) {}

  bool agrees(int steps) {
    for (int i = 0; i < steps; ++i) {
      change();
      if (!same()) return false;
    }
    for (std::uint32_t slot = 0; slot < slot_count; ++slot) index_.end(slot);
    return find(index_, salt(), more(100)).empty();
  }

 private:
  std::uint32_t pick(std::size_t n) { return static_cast<std::uint32_t>(random_() % n); }
  std::string salt() { return std::array{"", "a", "ab"}[pick(3)]; }
  /// Blocks that mostly differ in their last token only, if at all.
  TokenList more(std::size_t count, std::size_t from = 0) {
    TokenList out(count);
    for (std::size_t i = 0; i < count; ++i)
      if ((from + i) % block == block - 1 || pick(60) == 0) out[i] = static_cast<Token>(pick(2));
    return out;
  }
  TokenList query() {
    TokenList out;
    if (const auto& path = naive_.slots[pick(slot_count)]; path && pick(4) != 0) out = path->tokens;
    if (!out.empty() && pick(2) == 0) out.resize(pick(out.size() + 1));
    if (!out.empty() && pick(3) == 0) out[pick(out.size())] ^= 1;
    const TokenList tail = more(pick(50), out.size());
    out.insert(out.end(), tail.begin(), tail.end());
    return out;
  }

  void change() {
    const std::uint32_t slot = pick(slot_count), other = pick(slot_count);
    auto& path = naive_.slots[slot];
    const std::uint32_t what = pick(12);
    if (!path || what == 0) {
      path = {salt(), {}};
      index_.begin(slot, path->salt);
    } else if (what < 7) {
      const TokenList tokens = more(pick(70), path->tokens.size());
      path->tokens.insert(path->tokens.end(), tokens.begin(), tokens.end());
      index_.append(slot, tokens);
    } else if (what < 9 && slot != other) {
      const std::size_t length = pick(path->tokens.size() + 20);
      naive_.slots[other] = path;
      TokenList& copied = naive_.slots[other]->tokens;
      copied.resize(std::min(copied.size(), length));
      index_.copy(slot, other, {length});
    } else if (what < 11) {
      const std::size_t to = pick(path->tokens.size() + 20);
      path->tokens.resize(std::min(path->tokens.size(), to));
      index_.cut(slot, {to});
    } else {
      path.reset();
      index_.end(slot);
    }
  }

  bool same() {
    for (std::uint32_t slot = 0; slot < slot_count; ++slot) {
      const auto& path = naive_.slots[slot];
      const std::size_t known = path ? path->tokens.size() : 0;
      if (index_.begun(slot) != path.has_value() || index_.known(slot) != Tokens{known} ||
          index_.findable(slot) != Tokens{known - known % block})
        return false;
    }
    for (int i = 0; i < 3; ++i) {
      const std::string owner = salt();
      const TokenList tokens = query();
      const auto expected = naive_.find(owner, tokens);
      if (find(index_, owner, tokens) != expected) return false;
      auto first = expected;
      first.resize(std::min<std::size_t>(expected.size(), 1));
      if (find(index_, owner, tokens, 1) != first) return false;
    }
    return true;
  }

  std::mt19937 random_;
  PrefixIndex index_{slot_count};
  Naive naive_;
};

}  // namespace

TEST(any_course_is_as_with_a_comparison_of_all_tokens) {
  const unsigned first = std::random_device{}() % 1'000'000;
  for (unsigned seed = first; seed < first + 40; ++seed) {
    if (Course(seed).agrees(400)) continue;
    check::report(__FILE__, __LINE__, "the seed was " + std::to_string(seed));
    return;
  }
}

TEST(only_equal_tokens_are_found) {
  PrefixIndex index(2);
  const TokenList tokens = numbers(48);
  index.begin(0, "");
  index.append(0, tokens);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    for (const Token other : {tokens[i] + 1, ~tokens[i], tokens[i] ^ (1 << 30)}) {
      TokenList changed = tokens;
      changed[i] = other;
      const std::size_t left = i - i % block;
      CHECK(find(index, "", changed) == (left == 0 ? std::vector<Found>{} : std::vector<Found>{{left, {0}}}));
    }
  TokenList swapped = numbers(16, 16);  // the same blocks in another order
  swapped.insert(swapped.end(), tokens.begin(), tokens.begin() + 16);
  CHECK(find(index, "", swapped).empty());
  CHECK((find(index, "", tokens) == std::vector<Found>{{48, {0}}}));
}

TEST(only_whole_blocks_are_found) {
  PrefixIndex index(2);
  index.begin(0, "");
  for (std::size_t i = 0; i < 40; ++i) {
    CHECK(index.known(0) == Tokens{i} && index.findable(0) == Tokens{i - i % block});
    const std::size_t whole = i - i % block;
    CHECK(find(index, "", numbers(40)) ==
          (whole == 0 ? std::vector<Found>{} : std::vector<Found>{{whole, {0}}}));
    index.append(0, numbers(1, static_cast<Token>(i)));
  }
  CHECK(find(index, "", numbers(15)).empty());
  CHECK((find(index, "", numbers(31)) == std::vector<Found>{{16, {0}}}));
}

TEST(the_longest_comes_first_and_each_slot_once) {
  PrefixIndex index(5);
  for (std::uint32_t slot = 0; slot < 4; ++slot) {
    index.begin(slot, "");
    index.append(slot, numbers(64 - 16 * slot));
  }
  index.begin(4, "");
  index.append(4, numbers(32));
  index.append(4, numbers(32, 1));  // goes another way
  const std::vector<Found> all = find(index, "", numbers(100));
  CHECK((all == std::vector<Found>{{64, {0}}, {48, {1}}, {32, {2, 4}}, {16, {3}}}));
  CHECK((find(index, "", numbers(47)) == std::vector<Found>{{32, {0, 1, 2, 4}}, {16, {3}}}));
  CHECK((find(index, "", numbers(100), 2) == std::vector<Found>{{64, {0}}, {48, {1}}}));
}

TEST(owners_with_other_salts_see_nothing_of_each_other) {
  PrefixIndex index(3);
  const std::string with_zero("a\0b", 3);
  for (std::uint32_t slot = 0; slot < 3; ++slot) {
    index.begin(slot, std::array<std::string, 3>{"", "a", with_zero}[slot]);
    index.append(slot, numbers(32));
  }
  CHECK((find(index, "", numbers(32)) == std::vector<Found>{{32, {0}}}));
  CHECK((find(index, "a", numbers(32)) == std::vector<Found>{{32, {1}}}));
  CHECK((find(index, with_zero, numbers(32)) == std::vector<Found>{{32, {2}}}));
  CHECK(find(index, "b", numbers(32)).empty());
  index.copy(1, 0, {16});  // the owner goes with the tokens
  CHECK(find(index, "", numbers(32)).empty());
  CHECK((find(index, "a", numbers(32)) == std::vector<Found>{{32, {1}}, {16, {0}}}));
  index.begin(1, "");
  CHECK((find(index, "a", numbers(32)) == std::vector<Found>{{16, {0}}}));
}

TEST(what_follows_a_copy_or_a_cut_goes_its_own_way) {
  PrefixIndex index(2);
  index.begin(0, "");
  index.append(0, numbers(41));
  for (const std::uint64_t length : {0, 7, 16, 25, 32, 39, 41, 50}) {
    for (const bool cut : {false, true}) {
      index.copy(0, 1, {cut ? 1'000 : length});
      if (cut) index.cut(1, {length});
      const std::size_t left = std::min<std::size_t>(length, 41);
      CHECK(index.known(1) == Tokens{left} && index.known(0) == Tokens{41});
      index.append(1, numbers(64 - left, static_cast<Token>(left)));  // what is no block yet must be right
      CHECK((find(index, "", numbers(64)) == std::vector<Found>{{64, {1}}, {32, {0}}}));
    }
  }
}

TEST(a_path_of_a_hundred_thousand_blocks_ends_without_a_deep_stack) {
  constexpr std::size_t blocks = 100'000;
  const TokenList tokens = numbers(blocks * block);
  for (const bool end : {true, false}) {
    PrefixIndex index(3);
    index.begin(0, "");
    index.append(0, tokens);
    index.copy(0, 1, {blocks * block / 2});
    index.begin(2, "");
    index.append(2, tokens);
    CHECK(
        (find(index, "", tokens) == std::vector<Found>{{blocks * block, {0, 2}}, {blocks * block / 2, {1}}}));
    if (!end) continue;
    index.end(2);
    index.cut(0, {16});
    CHECK((find(index, "", tokens) == std::vector<Found>{{blocks * block / 2, {1}}, {16, {0}}}));
  }
}

TEST(what_is_known_of_a_slot_can_be_told) {
  PrefixIndex index(2);
  CHECK(index.salt(0).empty() && index.tokens(0, {}).empty());
  const TokenList tokens = numbers(40);
  index.begin(0, "salt");
  index.append(0, tokens);
  CHECK(index.salt(0) == "salt" && index.tokens(0, index.known(0)) == tokens);
  CHECK(index.tokens(0, index.findable(0)) == numbers(32));
  index.copy(0, 1, {20});
  CHECK(index.salt(1) == "salt" && index.tokens(1, {20}) == numbers(20));
}

TEST(when_all_slots_have_ended_no_memory_is_left) {
  const TokenList tokens = numbers(1'000);
  PrefixIndex index(4);
  const std::int64_t before = in_use;
  for (int round = 0; round < 3; ++round) {
    for (std::uint32_t slot = 0; slot < 4; ++slot) {
      index.begin(slot, "an owner with a name that is long enough for the heap " + std::to_string(slot % 2));
      index.append(slot, std::span(tokens).first(1'000 - slot * 7));
    }
    index.copy(1, 0, {500});
    index.cut(2, {333});
    CHECK(find(index, "", tokens).empty());
    for (std::uint32_t slot = 0; slot < 4; ++slot) index.end((slot + 2) % 4);
    CHECK(in_use == before);
  }
}
