#include "memory/streams.h"

#include <utility>

#include "base/error.h"
#include "base/undo.h"

namespace vmm {

StreamHandle Streams::create() {
  ground_.require_parent();
  ground_.require_open();
  if (!ended().empty()) {
    try {
      ground_.epochs.poll();
    } catch (const Error&) {  // Whoever waits for the work that failed will hear of it.
    }
    sweep();
  }
  const StreamHandle made = ground_.driver->create_stream();
  std::lock_guard lock(mutex_);
  own_[made.value] = {};
  return made;
}

void Streams::end(StreamHandle stream) {
  ground_.require_parent();
  if (end_own(stream)) ground_.signals.note_idle();  // A pool that does nothing else would keep it.
}

bool Streams::end_own(StreamHandle stream) {
  std::lock_guard lock(mutex_);
  const auto found = own_.find(stream.value);
  if (found == own_.end()) return false;
  if (!std::exchange(found->second.ended, true)) ground_.epochs.give_up(stream);
  return true;
}

void Streams::end_all() {
  std::lock_guard lock(mutex_);
  for (auto& [value, own] : own_)
    if (!std::exchange(own.ended, true)) ground_.epochs.give_up({value});
}

Streams::Use::Use(Streams& streams, StreamHandle stream, bool ended_too)
    : streams_(streams), stream_(stream) {
  std::lock_guard lock(streams.mutex_);
  const auto found = streams.own_.find(stream.value);
  if (found == streams.own_.end()) return;
  if (found->second.ended && !ended_too) throw Closed("this stream is closed");
  ++found->second.users;
  ours_ = true;
}

Streams::Use::~Use() {
  if (!ours_) return;
  std::lock_guard lock(streams_.mutex_);
  --streams_.own_.at(stream_.value).users;
}

void Streams::copy(Address to, Address from, Bytes size, StreamHandle stream) {
  ground_.require_parent();
  const Use use(*this, stream);
  ground_.driver->copy(to, from, size, stream);
  ground_.epochs.mark(stream);
}

void Streams::synchronize(StreamHandle stream) {
  ground_.require_parent();
  const Use use(*this, stream);
  wait_for(stream);
}

void Streams::epoch_closed() {
  if (!ground_.signals.awaited()) return;
  std::lock_guard lock(ground_.mutex);
  if (tables_.waiting().count != 0) ground_.signals.given_up(false);
}

void Streams::wait_for(StreamHandle stream) {
  struct Recorded {
    Driver& driver;
    EventHandle event;
    ~Recorded() {
      undo_or_leak([this] { driver.destroy_event(event); });
    }
  };
  const Recorded recorded{*ground_.driver, ground_.driver->record(stream)};
  ground_.driver->wait(recorded.event);
}

void Streams::destroy(StreamHandle stream) {
  ground_.require_parent();
  if (!await_and_destroy(stream) && !ground_.closed)
    throw InvalidArgument("stream: not one that this pool has made");
  epoch_closed();
}

/// Returns false where it is no stream of these.
bool Streams::await_and_destroy(StreamHandle stream) {
  if (!end_own(stream)) return false;
  {
    const Use use(*this, stream, true);
    if (!use.ours()) return true;  // Its work was over, and another thread's sweep has destroyed it.
    wait_for(stream);
  }
  destroy_if_unused(stream);
  return true;
}

/// Destroys a stream whose work is over. Where somebody else still waits for it, the next sweep does that.
void Streams::destroy_if_unused(StreamHandle stream) {
  {
    std::lock_guard lock(mutex_);
    const auto found = own_.find(stream.value);
    if (found == own_.end() || found->second.users != 0) return;
    own_.erase(found);  // The driver may give the same handle to somebody at once.
  }
  try {
    ground_.epochs.destroy(stream);
  } catch (...) {
    std::lock_guard lock(mutex_);
    own_[stream.value] = {true, 0};
    ground_.epochs.give_up(stream);
    throw;
  }
}

std::uint64_t Streams::sweep() noexcept {
  std::uint64_t coming = 0;
  for (StreamHandle stream : ended()) {
    const Epochs::Ending ending = ground_.epochs.ending(stream);
    coming += ending == Epochs::Ending::coming;
    try {
      if (ending == Epochs::Ending::over) destroy_if_unused(stream);
    } catch (const std::exception&) {  // The next sweep tries again what the driver refuses.
    }
  }
  return coming;
}

std::vector<StreamHandle> Streams::ended() const {
  std::lock_guard lock(mutex_);
  std::vector<StreamHandle> out;
  for (const auto& [value, own] : own_)
    if (own.ended) out.push_back({value});
  return out;
}

bool Streams::empty() const {
  std::lock_guard lock(mutex_);
  return own_.empty();
}

}  // namespace vmm
