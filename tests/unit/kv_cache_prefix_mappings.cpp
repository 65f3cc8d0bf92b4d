// Sequences begin with tokens of others until the process has no memory mapping left for one more. (Only the
// host driver counts mappings.)
#include <cstdlib>

#include "base/error.h"
#include "check.h"
#include "driver/host_mappings.h"
#include "prefix_fixture.h"

using namespace vmm;

namespace {

// Before anybody asks how many mappings there may be.
[[maybe_unused]] const int set_limit = setenv("VMM_MAX_MAPPINGS", "4000", 1);

/// Each sequence has pages in so many extents, which take at least one mapping each.
const PrefixOptions many_extents{.budget = 512_MiB, .slots = 60, .extents = 64};

/// Opens sequences with the prompt until one finds nothing, which is the last.
std::vector<Sequence> open_all(PrefixCache& test, const TokenList& prompt) {
  std::vector<Sequence> out;
  while (test.cache->open_slots() < test.options.slots && (out.empty() || out.back().cached != 0))
    out.push_back(test.open(prompt));
  return out;
}

}  // namespace

TEST(without_a_mapping_left_a_sequence_finds_nothing_and_nothing_is_lost) {
  if (on_cuda()) return;
  const TokenList tokens = tokens_from(0, 210), prompt = joined(tokens, {1});
  for (const bool source_is_open : {true, false}) {
    PrefixCache test(many_extents);
    Sequence source = test.serve(tokens);
    if (!source_is_open) {
      test.close(source);
      test.end();
    }
    std::vector<Sequence> all = open_all(test, prompt);
    CHECK(all.size() > 4 && test.cache->open_slots() < test.options.slots);
    CHECK(all.back().cached == 0);
    Sequence refused = all.back();
    all.pop_back();
    CHECK_THROWS(MappingLimit, "VMM_MAX_MAPPINGS", test.step(refused, tokens));
    test.close(refused);
    test.end();
    for (const Sequence& each : all) CHECK(test.intact(each));
    CHECK(!source_is_open || test.intact(source));

    for (std::size_t i = 0; i < 3; ++i) {
      test.close(all.back());
      all.pop_back();
    }
    test.end();
    Sequence next = test.open(prompt);
    CHECK(next.cached == 208);
    test.step(next, tokens_from(900, 20));
    CHECK(test.intact(next));
    for (const Sequence& each : all) CHECK(test.intact(each));
    for (const Sequence& each : all) test.close(each);
    test.close(next);
    if (source_is_open) test.close(source);
    test.end();
  }
}
