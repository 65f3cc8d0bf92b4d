// The driver contract: the only seam between the engine and a platform's virtual memory.
//
// Rules for every implementation; tests/contract runs them on each:
//  - Whoever reserves and creates also frees and releases, before the driver ends.
//  - A driver that ends waits for nobody: work on streams that are not destroyed is left to the process, and
//    so must be the memory that it touches.
//  - Every method is safe from any thread; two threads must not work on the same page or range at once.
//  - A call that cannot be done throws: InvalidArgument for a broken rule, DriverOutOfMemory,
//    MappingLimit, or DriverError with the platform's own words. Nothing else ever throws or aborts.
//  - `create`, `map` and `set_access` are all or nothing. Only `unmap` can stop half way, and says where.
//  - A page is mapped whole, at addresses that are multiples of its size and lie in one reservation.
//    A page may be mapped at many addresses; an address holds one page at a time, never silently replaced.
//  - Nobody may touch a mapped page before `set_access`, nor an unmapped address ever: a fault kills (but
//    see `set_gap`).
//  - Work on a stream is done in order, beside the caller; work on the default stream is over when the call
//    returns. Only events tell that the rest is.
//  - Nothing else waits for work in flight, and what it touches must not be unmapped: proving that it is over
//    is the caller's task (memory/fences.h). A driver that can see the rule broken refuses.
#pragma once

#include <functional>
#include <span>
#include <string>

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
/// `Capabilities::merges_neighbours` is set; elsewhere the place is ignored.
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
  bool zero_gaps;               // see set_gap
  StreamHandle default_stream;  // the name of what 0 is, where it has another
  bool foreign_streams;         // streams may be anybody's: a handle that is none cannot be told, and kills
  bool shareable;               // pages can be exported
  int compute_capability;       // of a GPU, like 90; 0 elsewhere
  int device;                   // the platform's number of it
  std::uint64_t max_mappings;   // of the whole process; 0: no limit known
};

/// What happens to those who read an address of a reservation where nothing is mapped.
enum class Gap : std::uint8_t { faults, zeros };

class Driver {
 public:
  virtual ~Driver() = default;
  virtual const Capabilities& capabilities() const noexcept = 0;

  /// An address range with nothing mapped. Both arguments: multiples of the granularity, alignment a
  /// power of two.
  virtual Address reserve(Bytes size, Bytes alignment) = 0;
  /// Exactly one reservation, with nothing mapped in it.
  virtual void free_reservation(Address base, Bytes size) = 0;

  /// Sets what the range, where nothing is mapped, does from now on and whenever its pages are unmapped. A
  /// new reservation faults. Only where `zero_gaps` is set; writing faults everywhere.
  virtual void set_gap(Address start, Bytes size, Gap gap) = 0;

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

  /// The mapped page that holds the address, by a file descriptor that keeps its memory alive. Only where
  /// `shareable` is set.
  virtual ExportedPage export_page(Address) {
    throw InvalidArgument(std::string("export_page: not a capability of this ") + capabilities().name +
                          " driver");
  }

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
