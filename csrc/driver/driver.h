// The driver contract: the only seam between the engine and a platform's virtual memory.
//
// Every implementation keeps these rules, and tests/contract checks each of them on all implementations:
//  - Whoever reserves an address range or creates a page also frees or releases it before the driver ends.
//  - A driver that ends waits for nobody. It leaves work on streams that are not destroyed to the process, so
//    the memory that this work touches must be left, too.
//  - Every method may be called from any thread, but two threads must not work on the same page or the same
//    addresses at once.
//  - A call that cannot be done throws DriverOutOfMemory, MappingLimit, or DriverError with the platform's
//    own words; no call ends the process.
//  - `create`, `map` and `set_access` do all that they are asked for, or nothing. Only `unmap` can stop half
//    way, and it says where.
//  - A page is mapped whole, at addresses that are a multiple of its size and lie in one reservation. A page
//    may be mapped at many addresses. An address holds one page at a time, and mapping another page over it
//    is not allowed.
//  - Nobody may touch a mapped page before `set_access`, nor ever an address without a page: such an access
//    kills the process (but see Gaps).
//  - Work on a stream is done in order, beside the caller. Work on the default stream is over when the call
//    that asked for it returns; of all other work only events tell when it is over.
//  - No call but `destroy_stream`, `wait` and `finish` waits for work in flight. What such work touches must
//    not be unmapped: the caller has to prove that it is over (memory/fences.h). A driver that can see this
//    rule broken refuses with InvalidArgument.
//
// CheckedDriver (checked_driver.h) refuses a call whose arguments break a rule, with InvalidArgument and
// before anything has changed. It stands around every driver that the engine uses. What a driver by itself
// does with such arguments is undefined, except that each refuses handles of streams and events that it does
// not know.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "base/error.h"
#include "base/types.h"

namespace vmm {

/// Opaque to everyone but the driver that gave it.
struct PageHandle {
  std::uint64_t value = 0;
  constexpr auto operator<=>(const PageHandle&) const = default;
};
struct StreamHandle {
  std::uint64_t value = 0;  // 0 is the default stream
  constexpr auto operator<=>(const StreamHandle&) const = default;
};
/// Not a stream, but all that there are, anybody's: only record() takes it, and only where
/// `Capabilities::device_events` is set.
inline constexpr StreamHandle whole_device{~std::uint64_t{0}};

struct EventHandle {
  std::uint64_t value = 0;
  constexpr auto operator<=>(const EventHandle&) const = default;
};

/// Where a page lies among the driver's physical pages, in bytes from some origin. Pages at
/// neighbouring places that are mapped at neighbouring addresses cost the system one mapping where
/// `Capabilities::merges_neighbours` is set; there no two pages may share a byte of place, and the value of a
/// page's handle is the offset of its place. Elsewhere the place is ignored.
struct Place {
  std::uint64_t offset_bytes = 0;
};

struct PageMapping {
  Address address;
  PageHandle page;
  Bytes page_bytes;
};

struct MemoryRange {
  Address start;
  Bytes size;
};
/// Whether the two share a byte.
constexpr bool overlap(const MemoryRange& a, const MemoryRange& b) {
  return a.start < b.start + b.size && b.start < a.start + a.size;
}

/// What another process needs to map a page. Whoever gets the file descriptor has to close it.
struct ExportedPage {
  int file;
  Bytes offset;  // from the start of the page to the address that was asked for
  Bytes page_bytes;
};

struct Capabilities {
  const char* name;
  Bytes granularity;                  // every page size is a power of two times this
  Bytes default_page_bytes;           // the page size that suits the platform best
  bool merges_neighbours = false;     // see Place
  bool fresh_pages_are_zero = false;  // a page just created reads as zeros
  bool gpu = false;                   // the memory belongs to a GPU
  bool host_accessible = false;       // the CPU can read and write mapped pages
  StreamHandle default_stream{};      // a second name of stream 0, where the platform has one
  bool foreign_streams = false;       // streams may be anybody's, and a handle that is no stream kills
  bool device_events = true;          // record() takes `whole_device`
  int compute_capability = 0;         // of a GPU, like 90; elsewhere 0
  int device = 0;                     // the platform's number of the device
  std::uint64_t max_mappings = 0;     // that the whole process may have; 0 where no limit is known
};

/// What happens to those who read an address of a reservation where nothing is mapped.
enum class Gap : std::uint8_t { faults, zeros };

/// The ability to say what a reservation does where nothing is mapped.
class Gaps {
 public:
  /// Sets what the range, in which nothing is mapped, does from now on and whenever its pages are unmapped.
  /// In a new reservation reading faults. Writing faults everywhere, always.
  virtual void set_gap(Address start, Bytes size, Gap gap) = 0;

 protected:
  ~Gaps() = default;
};

/// The ability to give a page to another process.
class Exports {
 public:
  /// The mapped page that holds the address, by a file descriptor that keeps its memory alive. Throws
  /// InvalidArgument where nothing is mapped.
  virtual ExportedPage export_page(Address address) = 0;

 protected:
  ~Exports() = default;
};

/// The ability to copy between pages and host memory, where the CPU does not reach the pages.
class HostCopies {
 public:
  /// Locked memory, aligned to 4 KiB, that only release_host() ends. Throws DriverOutOfMemory.
  virtual std::byte* allocate_host(Bytes size) = 0;
  virtual void release_host(std::byte* memory) = 0;
  /// These two are done in order with the other work on `stream`, which create_stream() made. The page must
  /// be accessible, and the bytes of the host inside what allocate_host() gave.
  virtual void copy_out(std::byte* to, Address from, Bytes size, StreamHandle stream) = 0;
  virtual void copy_in(Address to, const std::byte* from, Bytes size, StreamHandle stream) = 0;
  /// Waits, asleep, for the work that is on the stream now. Where it throws anything but DeviceLost, that may
  /// go on.
  virtual void finish(StreamHandle stream) = 0;

 protected:
  ~HostCopies() = default;
};

class Driver {
 public:
  virtual ~Driver() = default;
  virtual const Capabilities& capabilities() const noexcept = 0;
  /// What not every driver can do. Null where this one cannot.
  virtual Gaps* gaps() noexcept { return nullptr; }
  virtual Exports* exports() noexcept { return nullptr; }
  virtual HostCopies* host_copies() noexcept { return nullptr; }

  /// Returns the start of an address range in which nothing is mapped. Both arguments are positive multiples
  /// of the granularity, and the alignment is a power of two.
  virtual Address reserve(Bytes size, Bytes alignment) = 0;
  /// Gives exactly one reservation back, in which nothing is mapped.
  virtual void free_reservation(Address base, Bytes size) = 0;

  /// Makes one physical page and commits its memory, so that a lack of memory shows here and nowhere else.
  virtual PageHandle create(Bytes page_bytes, Place place) = 0;
  /// Gives the memory of a page back that is mapped nowhere.
  virtual void release(PageHandle page) = 0;

  virtual void map(std::span<const PageMapping> pages) = 0;
  /// Makes mapped pages readable and writable. Touching them costs no page fault after that.
  virtual void set_access(std::span<const PageMapping> pages) = 0;
  /// Unmaps the entries in their order; no address may be named twice. `done` says how many entries are
  /// unmapped, also when this throws.
  virtual void unmap(std::span<const PageMapping> pages, std::size_t& done) = 0;

  /// These two are done in order with the other work on `stream`. Their memory must be accessible.
  virtual void copy(Address to, Address from, Bytes size, StreamHandle stream) = 0;
  virtual void zero(std::span<const MemoryRange> ranges, StreamHandle stream) = 0;

  virtual StreamHandle create_stream() = 0;
  /// Waits for the work on the stream, then ends it. The default stream cannot be destroyed.
  virtual void destroy_stream(StreamHandle stream) = 0;
  /// Returns an event that completes when the work that is on `stream` now has completed. Throws
  /// StreamCapturing where the stream is being captured into a graph. Where any stream of the device is being
  /// captured, an event of the whole device breaks that capture on CUDA, which cannot be asked before.
  virtual EventHandle record(StreamHandle stream) = 0;
  /// Whether the stream is being captured into a graph now. Somebody who records on a stream that others run
  /// asks this first, so that the event does not become a part of their graph. False for the whole device.
  virtual bool capturing(StreamHandle stream) = 0;
  /// Whether the event has completed. Throws StreamCapturing for an event that became a part of a graph all
  /// the same: it will never complete.
  virtual bool query(EventHandle event) = 0;
  virtual void wait(EventHandle event) = 0;
  virtual void destroy_event(EventHandle event) = 0;

  /// A thread of the engine's own, on which nobody else calls the platform, calls this once before it makes
  /// any other call here.
  virtual void bind_thread() = 0;

  /// Calls `work`, which makes many calls here. What a platform has to do before and after each call it then
  /// does once for all of them.
  virtual void together(const std::function<void()>& work) { work(); }

  /// An estimate of how many memory mappings the process may still make before `map` throws MappingLimit.
  virtual std::uint64_t mappings_left() const noexcept { return ~std::uint64_t{0}; }
};

}  // namespace vmm
