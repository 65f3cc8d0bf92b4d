#include "simulate/replay.h"

#include <algorithm>
#include <utility>

namespace vmm {

Replay::Replay(std::vector<Request> requests, const Roofline& roofline, const ReplayOptions& options,
               std::shared_ptr<KvMemory> memory)
    : requests_(std::move(requests)), roofline_(roofline), options_(options), memory_(std::move(memory)) {
  accounted_ = next_sample_ = memory_->now();
  for (Request& request : requests_) request.arrival += memory_->now();
}

bool Replay::run(std::uint64_t iterations) {
  for (std::uint64_t i = 0; i < iterations; ++i)
    if (!iterate()) return false;
  return true;
}

bool Replay::iterate() {
  take_arrivals();
  if (running_.empty() && waiting_.empty() && !idle_until_arrival()) return false;
  while (admit(plan(true))) {
  }
  if (running_.empty()) return true;  // all that arrived were rejected
  if (!step_or_preempt()) return true;
  wait_until(launch());
  sample_tokens();
  ++figures_.iterations;
  return true;
}

bool Replay::idle_until_arrival() {
  if (arrived_ == requests_.size()) return false;
  memory_->sleep_until(std::max(memory_->now(), requests_[arrived_].arrival));
  account();
  take_arrivals();
  return true;
}

void Replay::take_arrivals() {
  for (; arrived_ < requests_.size() && requests_[arrived_].arrival <= memory_->now(); ++arrived_) {
    const Request& request = requests_[arrived_];
    const std::uint64_t tokens = std::uint64_t{request.prompt} + request.output;
    if (tokens > options_.max_tokens || memory_->places() == 0 ||
        memory_->bytes_for({tokens}) > memory_->capacity()) {
      ++figures_.rejected;
      continue;
    }
    waiting_.push_back({.request = static_cast<std::uint32_t>(arrived_), .target = request.prompt});
  }
}

/// Shares out the next iteration's tokens: first to the running sequences, then to the waiting ones, in
/// order, as far as there is memory for their whole prompts. Returns how many may be admitted.
std::size_t Replay::plan(bool may_admit) {
  std::uint32_t left = options_.batch_tokens;
  Bytes taken;
  for (Sequence& each : running_) {
    each.chunk = std::min(std::max(each.target - each.length, 1U), left);
    left -= each.chunk;
    taken += memory_->bytes_for({std::max(each.target, each.length + each.chunk)});
  }
  std::size_t count = 0;
  if (!may_admit) return count;
  const Bytes capacity = memory_->capacity();
  const Bytes spare{static_cast<std::uint64_t>(static_cast<double>(capacity.count) * options_.watermark)};
  for (; count < waiting_.size() && left != 0 && running_.size() + count < memory_->places(); ++count) {
    Sequence& each = waiting_[count];
    taken += memory_->bytes_for({each.target + std::uint64_t{1}});
    const bool alone = running_.empty() && count == 0;
    if (taken + (alone ? Bytes{} : spare) > capacity) break;
    each.chunk = std::min(each.target - each.length, left);
    left -= each.chunk;
  }
  return count;
}

/// Returns whether tokens were found that the plan did not know of: then more may fit into the iteration.
bool Replay::admit(std::size_t count) {
  bool found = false;
  for (; count != 0; --count) {
    Sequence& each = waiting_.front();
    if (each.place == no_place) found |= open(each, 0);
    each.chunk = std::min(each.chunk, each.target - each.length);
    const Request& request = requests_[each.request];
    if (!std::exchange(each.admitted, true) && !request.blocks.empty()) {
      figures_.looked_up_tokens += request.prompt;
      figures_.found_tokens += each.length;
    }
    running_.push_back(each);
    waiting_.pop_front();
  }
  return found;
}

/// Gives the sequence a place, and what others have computed of its tokens. Returns whether that is anything.
bool Replay::open(Sequence& sequence, std::uint32_t announced) {
  const Request& request = requests_[sequence.request];
  if (request.blocks.empty()) {
    sequence.place = memory_->open({sequence.target}, {announced});
    return false;
  }
  tokens_of(request, sequence.request, 0, sequence.target, tokens_);
  const KvMemory::Opened opened = memory_->open_prompt(tokens_, {announced});
  sequence.place = opened.place;
  sequence.length = static_cast<std::uint32_t>(opened.cached.count);
  return sequence.length != 0;
}

bool Replay::step() {
  places_.clear();
  lengths_.clear();
  for (const Sequence& each : running_) {
    if (each.chunk == 0) continue;
    places_.push_back(static_cast<std::int32_t>(each.place));
    lengths_.push_back(static_cast<std::int32_t>(each.length + each.chunk));
  }
  return memory_->step(places_, lengths_);
}

/// Steps, and preempts as long as memory does not suffice. Returns false when there is nothing left to step.
bool Replay::step_or_preempt() {
  const Nanoseconds stalled = memory_->counts().stalled;
  while (!step()) {
    preempt_last();
    if (running_.empty()) return false;
    plan(false);
  }
  figures_.longest_stall = std::max(figures_.longest_stall, memory_->counts().stalled - stalled);
  figures_.most_running = std::max(figures_.most_running, static_cast<std::uint32_t>(running_.size()));
  return true;
}

/// Preempts the sequence that came in last. It is computed again later, together with what it has generated.
void Replay::preempt_last() {
  Sequence last = running_.back();
  running_.pop_back();
  memory_->close(last.place);
  ++figures_.preempted;
  last.length = last.chunk = last.announced = 0;
  last.place = no_place;
  for (Sequence& each : waiting_) {  // a sequence that has its place already gives way, too
    if (each.place == no_place) break;
    memory_->close(std::exchange(each.place, no_place));
    each.length = each.announced = 0;
  }
  waiting_.push_front(last);
}

/// Launches the iteration's kernels. Returns when they will be over.
Nanoseconds Replay::launch() {
  BatchWork work;
  for (Sequence& each : running_) {
    if (each.chunk == 0) continue;
    const double before = each.length, chunk = each.chunk;
    work.tokens += chunk;
    work.read_tokens += before;
    work.token_contexts += chunk * (before + (chunk + 1) / 2);
    each.length += each.chunk;
    figures_.computed_tokens += each.chunk;
  }
  const Nanoseconds over = memory_->run(roofline_.time(work));
  commit();
  foresee();
  return over;
}

/// The iteration's tokens are on their way: whoever begins with them may have them in the next.
void Replay::commit() {
  for (const Sequence& each : running_) {
    const Request& request = requests_[each.request];
    if (request.blocks.empty() || each.chunk == 0) continue;
    tokens_of(request, each.request, each.length - each.chunk, each.length, tokens_);
    memory_->commit(each.place, tokens_);
  }
}

/// Announces what the next iteration will need if nobody finishes: the next chunks of prompts, and the
/// requests that will be admitted then.
void Replay::foresee() {
  const auto slack = static_cast<std::uint32_t>(running_.size());  // tokens that those who finish leave
  auto soon = [&](const Sequence& each) { return std::min(each.length + each.chunk + slack, each.target); };
  for (bool found = true; found;) {  // where tokens are, the next iteration has room for more requests
    found = false;
    const std::size_t coming = plan(true);
    for (Sequence& each : running_)
      if (each.length < each.target) announce(each, soon(each));
    for (std::size_t i = 0; i < coming; ++i) found |= announce(waiting_[i], soon(waiting_[i]));
  }
  account();
}

/// Returns whether tokens of the sequence were found that nobody knew of.
bool Replay::announce(Sequence& sequence, std::uint32_t to) {
  if (to <= sequence.announced) return false;
  sequence.announced = to;
  if (sequence.place == no_place) return open(sequence, to);
  memory_->announce(sequence.place, {to});
  return false;
}

void Replay::wait_until(Nanoseconds over) {
  while (arrived_ < requests_.size() && requests_[arrived_].arrival < over) {
    memory_->sleep_until(requests_[arrived_].arrival);
    take_arrivals();
    foresee();
  }
  memory_->sleep_until(over);
  account();
}

void Replay::sample_tokens() {
  for (Sequence& each : running_) {
    if (each.length < each.target) continue;
    if (each.generated++ == 0) each.first_token = memory_->now();
    ++each.target;
    if (each.generated == requests_[each.request].output) finish(each);
  }
  std::erase_if(running_, [](const Sequence& each) { return each.place == no_place; });
}

void Replay::finish(Sequence& sequence) {
  const Request& request = requests_[sequence.request];
  ++figures_.completed;
  figures_.prompt_tokens += request.prompt;
  figures_.output_tokens += request.output;
  figures_.bytes_opened += memory_->bytes_for({sequence.length}).count;
  figures_.to_first_token.push_back(sequence.first_token - request.arrival);
  figures_.to_last_token.push_back(memory_->now() - request.arrival);
  figures_.over_at = memory_->now() - requests_.front().arrival;
  memory_->close(std::exchange(sequence.place, no_place));
}

/// Adds up what was in use since the last call. It has not changed in between.
void Replay::account() {
  const Nanoseconds now = memory_->now();
  const double seconds = std::chrono::duration<double>(now - std::exchange(accounted_, now)).count();
  auto add = [&](double& sum, Bytes bytes) { sum += static_cast<double>(bytes.count) * seconds; };
  add(figures_.live_seconds, usage_.live);
  add(figures_.held_seconds, usage_.held);
  add(figures_.mapped_seconds, usage_.mapped);
  add(figures_.reclaimable_seconds, usage_.reclaimable);
  figures_.running_seconds += static_cast<double>(running_.size()) * seconds;
  usage_ = memory_->usage();
  if (now < next_sample_) return;
  next_sample_ = now + options_.sample_every;
  figures_.samples.push_back({now, usage_, static_cast<std::uint32_t>(running_.size()),
                              static_cast<std::uint32_t>(waiting_.size()), memory_->counts().stalled});
}

}  // namespace vmm
