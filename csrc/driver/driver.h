// The driver contract: the only seam between the engine and a platform's virtual memory.
//
// Every implementation keeps these rules, and tests/contract checks each of them on all implementations:
//  - Whoever reserves an address range or creates a page also frees or releases it before the driver ends.
//  - A driver that ends waits for nobody. It leaves work on streams that are not destroyed to the process, so
//    the memory that this work touches must be left, too.
//  - Every method may be called from any thread, but two threads must not work on the same page or the same
//    addresses at once.
//  - A call that cannot be done throws DriverOutOfMemory, MappingLimit, or DriverError with the platform's
//  own
//    words; no call ends the process.
//  - `create`, `map` and `set_access` do all that they are asked for, or nothing. Only `unmap` can stop half
//    way, and it says where.
//  - A page is mapped whole, at addresses that are a multiple of its size and lie in one reservation. A page
//    may be mapped at many addresses. An address holds one page at a time, and mapping another page over it
//    is not allowed.
//  - Nobody may touch a mapped page before `set_access`, nor ever an address without a page: such an access
//    kills the process (but see Gaps).
//  - Work on a stream is done in order, beside the caller. Work on the default stream is over when the call
//    that asked for it returns; of all other work only events tell when it is over.
//  - No call but `destroy_stream` and `wait` waits for work in flight. What such work touches must not be
//    unmapped: the caller has to prove that it is over (memory/fences.h). A driver that can see this rule
//    broken refuses with InvalidArgument.
//
// CheckedDriver (checked_driver.h) refuses a call whose arguments break a rule, with InvalidArgument and
// before anything has changed. It stands around every driver that the engine uses. What a driver by itself
// does with such arguments is undefined, except that each refuses handles of streams and events that it does
// not know.
#pragma once

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
struct EventHandle {
  std::uint64_t value = 0;
  constexpr auto operator<=>(const EventHandle&) const = default;
};

/// Where a page lies among the driver's physical pages, in bytes from an arbitrary origin. Pages at
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

/// A page for another process. Whoever gets the descriptor closes it.
struct ExportedPage {
  int file;
  Bytes offset;  // of the address in the page
  Bytes page_bytes;
};

struct Capabilities {
  const char* name;
  Bytes granularity;            // page sizes are power-of-two multiples of it
  Bytes default_page_bytes;     // what the platform is best at
  bool merges_neighbours;       // see Place
  bool fresh_pages_are_zero;    // a page just created reads as zeros
  bool gpu;                     // the memory is a GPU's
  bool host_accessible;         // the CPU can read and write mapped pages
  StreamHandle default_stream;  // the name of what 0 is, where it has another
  bool foreign_streams;         // streams may be anybody's: a handle that is none cannot be told, and kills
  int compute_capability;       // of a GPU, like 90; 0 elsewhere
  int device;                   // the platform's number of it
  std::uint64_t max_mappings;   // of the whole process; 0: no limit known
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

class Driver {
 public:
  virtual ~Driver() = default;
  virtual const Capabilities& capabilities() const noexcept = 0;
  /// What not every driver can do. Null where this one cannot.
  virtual Gaps* gaps() noexcept { return nullptr; }
  virtual Exports* exports() noexcept { return nullptr; }

  /// An address range with nothing mapped. Both arguments: multiples of the granularity, alignment a
  /// power of two.
  virtual Address reserve(Bytes size, Bytes alignment) = 0;
  /// Exactly one reservation, with nothing mapped in it.
  virtual void free_reservation(Address base, Bytes size) = 0;

  /// One physical page, its memory committed: running out of memory shows here.
  virtual PageHandle create(Bytes page_bytes, Place place) = 0;
  /// Gives the page's memory back. Refused while the page is mapped.
  virtual void release(PageHandle page) = 0;

  virtual void map(std::span<const PageMapping> pages) = 0;
  /// Makes mapped pages readable and writable, with their memory present.
  virtual void set_access(std::span<const PageMapping> pages) = 0;
  /// Unmaps in order, no address twice. `done` says, also when this throws, how many entries are unmapped.
  virtual void unmap(std::span<const PageMapping> pages, std::size_t& done) = 0;

  /// Both ends accessible; ordered on `stream`.
  virtual void copy(Address to, Address from, Bytes size, StreamHandle stream) = 0;
  virtual void zero(std::span<const MemoryRange> ranges, StreamHandle stream) = 0;

  virtual StreamHandle create_stream() = 0;
  /// Waits for the work on it. The default stream cannot be destroyed.
  virtual void destroy_stream(StreamHandle stream) = 0;
  /// An event that completes when the work now on `stream` has. Throws StreamCapturing where the stream is
  /// being captured into a graph.
  virtual EventHandle record(StreamHandle stream) = 0;
  /// Whether the stream is being captured into a graph now. Asked by whoever does not run the stream, so that
  /// nothing of his gets into the graph.
  virtual bool capturing(StreamHandle stream) = 0;
  /// Throws StreamCapturing for an event that got into a capture all the same: it will never complete.
  virtual bool query(EventHandle event) = 0;
  virtual void wait(EventHandle event) = 0;
  virtual void destroy_event(EventHandle event) = 0;

  /// Called once on a thread of the engine's own, on which nobody else calls the platform, before it makes
  /// other calls here.
  virtual void bind_thread() = 0;

  /// Calls `work`, which makes many calls here: what each of them costs besides is paid once.
  virtual void together(const std::function<void()>& work) { work(); }

  /// Mappings of the process that may still be made before `map` throws MappingLimit; an estimate.
  virtual std::uint64_t mappings_left() const noexcept { return ~std::uint64_t{0}; }
};

}  // namespace vmm
