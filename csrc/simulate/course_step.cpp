// An iteration of one stream: what is asked for, what is launched, and what is done when it is refused.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "simulate/course.h"

namespace vmm {

using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t steps_while_parked = 16;  // one in so many wants the sequence back

}  // namespace

void Course::choose_batch(std::size_t stream, std::size_t cache) {
  stepped_ = cache;
  batch_.clear();
  lengths_.clear();
  const std::uint64_t chunk = options_.plain ? 512 : 1 + pick(64);
  for (std::size_t i = 0; i < running_.size(); ++i) {
    const Sequence& sequence = running_[i];
    if (sequence.stream != stream || sequence.cache != cache || sometimes(5)) continue;
    if (sequence.parked && pick(steps_while_parked) != 0) continue;
    std::uint64_t to = sequence.length + (sometimes(8) ? pick(8) : options_.cache.tokens_per_step.count);
    if (sequence.length < sequence.prompt) to = std::min(sequence.length + chunk, sequence.prompt);
    batch_.push_back(i);
    lengths_.push_back(static_cast<std::int32_t>(std::min(to, max_tokens())));
  }
}

void Course::step(std::size_t stream, std::size_t cache) {
  choose_batch(stream, cache);
  finish_epoch(stream);
  for (int i = 0; i < 20; ++i) {
    const Stepped stepped = try_step(stream);
    if (stepped == Stepped::yes) return;
    if (stepped == Stepped::refused) return settle_for(fitting_);
    if (stepped == Stepped::failed) continue;
    for (std::size_t other = 0; other < streams_.size(); ++other)
      if (other != stream) end(other);
  }
}

Course::Stepped Course::try_step(std::size_t number) {
  slots_.clear();
  for (std::size_t i : batch_) slots_.push_back(static_cast<std::int32_t>(running_[i].slot));
  const std::vector<std::uint32_t> named = parked_among(batch_);
  const std::uint64_t failures_before = failures();
  const bool others_open = std::ranges::any_of(
      streams_, [&](const Stream& other) { return &other != &streams_[number] && other.open; });
  const Nanoseconds called = world_.now();
  streams_[number].open = true;
  ++totals_.steps;
  sure_ = false;
  try {
    caches_[stepped_].kv->step(slots_, lengths_, streams_[number].handle);
  } catch (const SequenceLost& error) {
    lose(stepped_, error);
    note_awake(stepped_, named);
    return Stepped::failed;
  } catch (const OutOfPages& error) {
    ++totals_.refused;
    note_awake(stepped_, named);
    // Nobody can have what the driver refused to unmap earlier.
    // The pager, which loads, may have been told long ago that the device has no more.
    undisturbed_ = failures() == failures_before && !world_.pool()->reclaiming().refused() && named.empty();
    sure_ = undisturbed_ && !others_open;
    fitting_ = error.fitting();
    if (options_.check) check_refusal(error);
    return Stepped::refused;
  } catch (const DriverError&) {
    if (failures() == failures_before && named.empty()) throw;  // a load may have failed before
    note_awake(stepped_, named);
    if (options_.check) check();
    return Stepped::failed;
  } catch (const InvalidArgument&) {
    throw;
  } catch (const InvariantViolation&) {
    throw;
  } catch (const Error&) {  // another stream's open epoch may still read a slot for the sequence before
    if (!others_open) throw;
    note_awake(stepped_, named);
    return Stepped::blocked;
  }
  note_awake(stepped_, named);
  commit(number, called);
  return Stepped::yes;
}

/// Records the step in the model, and launches the first half of the epoch's work on the stream.
void Course::commit(std::size_t number, Nanoseconds called) {
  Stream& stream = streams_[number];
  new_pages_.clear();
  writes_.clear();
  for (std::size_t i = 0; i < batch_.size(); ++i) {
    Sequence& sequence = running_[batch_[i]];
    const auto to = static_cast<std::uint64_t>(lengths_[i]);
    const std::uint64_t from = sequence.previous = std::exchange(sequence.length, to);
    append_reachable(sequence, from, reach(to), stream.uses);
    if (options_.contents) write_contents(sequence, from, to);
    if (options_.prefixes) commit_text(sequence);
    if (options_.check)
      for (const SlotPart& part : parts_of(sequence)) append(part, sequence.slot, from, to, writes_);
    if (!comes_into_a_page(sequence, from, to)) continue;
    sequence.computed = std::max(sequence.computed, from);
    for (const SlotPart& part : parts_of(sequence)) append(part, sequence.slot, from, reach(to), new_pages_);
  }
  if (const Owner& owner = owner_of(stepped_); owner.terms.guaranteed.count != 0)
    totals_.within += kept(owner.id) <= owner.terms.guaranteed;
  totals_.stalled += world_.driver().touch(new_pages_, called).waited;
  if (options_.check) check_writes(number);
  world_.driver().run(stream.handle, 1ms + Nanoseconds{static_cast<Nanoseconds::rep>(pick(4'000'000))},
                      stream.uses);
}

/// Launches the second half of the epoch's work. What the first half used must still be there.
void Course::finish_epoch(std::size_t number) {
  Stream& stream = streams_[number];
  if (stream.uses.empty()) return;
  if (options_.check) world_.driver().require_accessible(stream.uses);
  world_.driver().run(stream.handle, 4ms, std::exchange(stream.uses, {}));
}

/// After a step was refused, does what an engine would: those that fit go on, and one that does not fit is
/// preempted.
void Course::settle_for(std::span<const std::uint32_t> fitting) {
  const std::vector<std::uint32_t> named(fitting.begin(), fitting.end());
  auto fits = [&](std::size_t i) { return std::ranges::find(named, running_[i].slot) != named.end(); };
  std::vector<std::size_t> others;
  std::vector<std::int32_t> lengths;
  for (std::size_t i = 0; i < batch_.size(); ++i)
    fits(batch_[i]) ? lengths.push_back(lengths_[i]) : others.push_back(batch_[i]);
  std::erase_if(batch_, [&](std::size_t i) { return !fits(i); });
  lengths_ = std::move(lengths);
  if (!batch_.empty() && !others.empty()) {
    const bool sure_before = sure_;
    const bool refused = try_step(running_[batch_.front()].stream) == Stepped::refused;
    if (options_.check && refused && sure_ && sure_before)
      throw InvariantViolation("a step of the slots that fit was refused");
  }
  if (others.empty()) return;
  const std::size_t one = others[pick(others.size())];
  const bool swap = tiers_ != nullptr && !running_[one].parked && running_[one].length != 0 && pick(2) == 0;
  swap ? park(one) : preempt(one);
}

}  // namespace vmm
