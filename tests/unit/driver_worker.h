// One thread's use of a driver: any call at any time, on pages and a stream of its own, and what must be true
// after each.
#pragma once

#include <array>
#include <cstdio>
#include <cstring>
#include <optional>
#include <random>
#include <vector>

#include "api.h"
#include "base/error.h"
#include "check.h"
#include "driver_under_test.h"

namespace vmm {

constexpr Bytes page = 64_KiB;
constexpr unsigned places = 8;  // of one thread

class Worker {
 public:
  /// Its pages are those of the `number`-th in the arena.
  Worker(Driver& driver, Address arena, unsigned number, unsigned seed)
      : driver_(driver),
        offset_(page * (places * number)),
        base_(arena + offset_),
        random_(seed),
        stream_(driver.create_stream()) {}

  /// One step, after which we know what is mapped and what it holds, whether it failed or not.
  void act() {
    try {
      switch (pick(9)) {
        case 0:
        case 1:
          return grow(some());
        case 2:
          return shrink(some());
        case 3:
          return copy(pick(places), pick(places));
        case 4:
          return zero(some());
        case 5:
          return write_and_check(pick(places));
        case 6:
          return change_streams();
        case 7:
          return finish();
        default:
          return reserve_and_free();
      }
    } catch (const DriverError&) {
      ++failures;
    }
  }

  void end() {
    if (spare_) driver_.free_reservation(*spare_, page * 4);
    shrink({0, places});
    release({0, places});
    driver_.destroy_stream(stream_);
  }

  int wrong = 0;
  int failures = 0;

 private:
  struct Slot {
    std::optional<PageHandle> page;
    bool mapped = false;
    bool accessible = false;
    std::optional<unsigned char> byte;  // what it is full of, if we know
  };
  struct Range {
    unsigned first, end;
  };

  unsigned pick(unsigned n) { return static_cast<unsigned>(random_() % n); }
  Range some() {
    const unsigned first = pick(places);
    return {first, first + 1 + pick(places - first)};
  }
  Place place(unsigned i) const { return {(offset_ + page * i).count}; }
  Address at(unsigned i) const { return base_ + page * i; }
  unsigned char* bytes(unsigned i) const { return reinterpret_cast<unsigned char*>(at(i).value); }

  /// Those in the range for which `wanted` holds, as the driver takes them.
  template <class Wanted>
  std::vector<PageMapping> mappings(Range range, Wanted wanted) const {
    std::vector<PageMapping> out;
    for (unsigned i = range.first; i < range.end; ++i)
      if (slots_[i].page && wanted(slots_[i])) out.push_back({at(i), *slots_[i].page, page});
    return out;
  }
  Slot& slot_of(const PageMapping& mapping) { return slots_[(mapping.address - base_) / page]; }

  void grow(Range range) {
    for (unsigned i = range.first; i < range.end; ++i)
      if (!slots_[i].page) slots_[i] = {.page = driver_.create(page, place(i)), .byte = fresh_};
    const auto unmapped = mappings(range, [](const Slot& s) { return !s.mapped; });
    driver_.map(unmapped);
    for (const PageMapping& one : unmapped) slot_of(one).mapped = true;
    const auto closed = mappings(range, [](const Slot& s) { return s.mapped && !s.accessible; });
    driver_.set_access(closed);
    for (const PageMapping& one : closed) slot_of(one).accessible = true;
  }

  void shrink(Range range) {
    finish();
    const auto mapped = mappings(range, [](const Slot& s) { return s.mapped; });
    std::size_t done = 0;
    const auto commit = [&] {
      for (std::size_t i = 0; i < done; ++i)
        slot_of(mapped[i]).mapped = slot_of(mapped[i]).accessible = false;
    };
    try {
      driver_.unmap(mapped, done);
    } catch (...) {
      commit();
      throw;
    }
    commit();
    if (pick(2) == 0) release(range);
  }

  void release(Range range) {
    for (unsigned i = range.first; i < range.end; ++i) {
      if (!slots_[i].page || slots_[i].mapped) continue;
      driver_.release(*slots_[i].page);
      slots_[i] = {};
    }
  }

  void copy(unsigned to, unsigned from) {
    if (to == from || !slots_[to].accessible || !slots_[from].accessible) return;
    const auto byte = slots_[from].byte;
    slots_[to].byte = {};  // in case it fails
    driver_.copy(at(to), at(from), page, stream_);
    slots_[to].byte = byte;
  }

  void zero(Range range) {
    std::vector<MemoryRange> ranges;
    for (unsigned i = range.first; i < range.end; ++i)
      if (slots_[i].accessible) ranges.push_back({at(i), page});
    const bool beside = pick(2) == 0;
    if (!beside) finish();  // the default stream does not wait for ours
    for (const MemoryRange& one : ranges) slots_[(one.start - base_) / page].byte = {};
    driver_.zero(ranges, beside ? stream_ : StreamHandle{});
    for (const MemoryRange& one : ranges) slots_[(one.start - base_) / page].byte = 0;
  }

  void write_and_check(unsigned i) {
    finish();
    if (!slots_[i].accessible) return;
    if (const auto byte = slots_[i].byte)
      for (std::uint64_t offset = 0; offset < page.count; offset += 4095) wrong += bytes(i)[offset] != *byte;
    const auto next = static_cast<unsigned char>(pick(256));
    std::memset(bytes(i), next, page.count);
    slots_[i].byte = next;
  }

  /// Waits for what is on our stream.
  void finish() {
    if (event_) forget_event();
    event_ = driver_.record(stream_);
    if (pick(2) == 0)
      while (!driver_.query(*event_)) std::this_thread::yield();
    driver_.wait(*event_);
    forget_event();
  }
  void forget_event() {
    driver_.destroy_event(*event_);
    event_.reset();
  }

  void change_streams() {
    const StreamHandle next = driver_.create_stream();
    try {
      driver_.destroy_stream(stream_);
    } catch (...) {
      driver_.destroy_stream(next);
      throw;
    }
    stream_ = next;
  }

  void reserve_and_free() {
    if (!spare_) spare_ = driver_.reserve(page * 4, page);
    driver_.free_reservation(*spare_, page * 4);
    spare_.reset();
  }

  Driver& driver_;
  Bytes offset_;  // of our pages among all
  Address base_;
  std::mt19937 random_;
  // The stand-in's fresh pages are full of 0xFF.
  unsigned char fresh_ = driver_.capabilities().fresh_pages_are_zero ? 0 : 0xFF;
  StreamHandle stream_;
  std::optional<EventHandle> event_;
  std::optional<Address> spare_;
  std::array<Slot, places> slots_;
};

}  // namespace vmm
