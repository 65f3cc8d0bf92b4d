// Sequences that begin with the tokens of others, in a course.
#include <algorithm>

#include "base/error.h"
#include "simulate/course_tries.h"

namespace vmm {
namespace {

constexpr std::size_t most_texts = 8;

}  // namespace

PrefixIndex::Token Course::Text::token(std::uint64_t at) const {
  std::uint64_t source = 0;
  for (const auto& [from, number] : sources)
    if (from <= at) source = number;
  return static_cast<PrefixIndex::Token>((source * 1'000'003 + at) % 2'147'483'647);
}

void Course::Text::go_on_alone(std::uint64_t from, std::uint64_t source) {
  std::erase_if(sources, [&](const auto& each) { return each.first >= from; });
  sources.emplace_back(from, source);
}

/// Of a sequence that has ended, or, at times, of one that runs; of the same cache where one is found soon.
Course::Text Course::another_text(std::size_t cache) {
  constexpr int tries = 3;
  Text text;
  const bool of_running = !running_.empty() && pick(2) == 0;
  for (int i = 0; i < tries; ++i) {
    if (of_running) {
      const Sequence& each = running_[pick(running_.size())];
      text = each.text;
      if (each.cache == cache && each.committed >= PrefixIndex::block_tokens) break;
    } else if (!texts_.empty()) {
      const auto& [owner, ended] = texts_[pick(texts_.size())];
      text = ended;
      if (owner == cache) break;
    }
  }
  return text;
}

void Course::open_with_text(std::size_t cache, std::uint64_t prompt, std::uint64_t announced) {
  const std::size_t number = pick(streams_.size());
  finish_epoch(number);  // what may be copied has been launched
  Text text = another_text(cache);
  // Most prompts are long enough for a block, and like another's until near their end.
  if (pick(4) != 0)
    prompt = std::min(max_tokens(), std::max(prompt, PrefixIndex::block_tokens + 1 + pick(32)));
  text.go_on_alone(pick(4) == 0 ? pick(prompt + 1) : prompt - pick(std::min<std::uint64_t>(prompt, 16)),
                   ++sources_);
  std::vector<PrefixIndex::Token> tokens;
  for (std::uint64_t at = 0; at < prompt; ++at) tokens.push_back(text.token(at));
  KvCache::Opened opened{};
  if (!tried_to_open([&] {
        opened = caches_[cache].kv->open_prompt({tokens, ""}, {announced}, streams_[number].handle);
      }))
    return;
  ++totals_.opens;
  const std::uint64_t cached = opened.cached.count;
  Sequence sequence{cache, opened.slot, number, prompt, cached, cached, cached};
  sequence.text = std::move(text);
  sequence.committed = cached;
  sequence.parked = std::ranges::binary_search(caches_[cache].kv->parked(), opened.slot);
  running_.push_back(std::move(sequence));
  forget_unread(cache, opened.slot);
  if (cached == 0) return;
  ++totals_.attached;
  totals_.restored += running_.back().parked;
  if (cached % PrefixIndex::block_tokens != 0 || cached >= prompt)
    throw InvariantViolation("a sequence begins with " + std::to_string(cached) + " of " +
                             std::to_string(prompt) + " tokens");
  // Nobody has said whose they are.
  for (Sequence& each : running_)
    if (each.cache == cache && !each.parked) note_shared(each);
  if (options_.contents && !running_.back().parked) check_contents(running_.back());
}

/// Tells the cache what the sequence's tokens are, at times, and at times only some of them.
void Course::commit_text(Sequence& sequence) {
  if (sometimes(6)) return;
  if (sequence.text.sources.empty()) sequence.text.go_on_alone(0, ++sources_);
  std::uint64_t to = sequence.length;
  if (sometimes(4)) to -= pick(to - sequence.committed + 1);
  std::vector<PrefixIndex::Token> tokens;
  for (std::uint64_t at = sequence.committed; at < to; ++at) tokens.push_back(sequence.text.token(at));
  cache_of(sequence).commit(sequence.slot, tokens);
  sequence.committed = to;
}

void Course::remember(const Sequence& sequence) {
  if (sequence.committed < PrefixIndex::block_tokens && texts_.size() == most_texts) return;
  if (texts_.size() < most_texts)
    texts_.emplace_back(sequence.cache, sequence.text);
  else
    texts_[pick(most_texts)] = {sequence.cache, sequence.text};
}

}  // namespace vmm
