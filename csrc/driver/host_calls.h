// The system calls behind the host driver. A function that returns int returns 0 or an errno.
#pragma once

#include "driver/driver.h"

namespace vmm::host {

inline void* pointer(Address address) { return reinterpret_cast<void*>(address.value); }

/// The size of a memfd. Only places that hold a page cost memory.
inline constexpr Bytes memfd_size = 64_TiB;
/// Opens a sparse memfd, which shows in /proc/self/maps as /memfd:NAME. Throws DriverError.
int open_memfd(const char* name);
/// Commits memory at `place`, which then reads as zeros.
int commit_zeros(int fd, Place place, Bytes size);
/// Gives the memory of a page back to the system.
int punch(int fd, PageHandle page, Bytes size);

/// Puts a mapping without memory where no page is mapped any more. It keeps the addresses reserved, and
/// forked children do not have it. Spends the reserve of mappings if it must.
int map_gap(Address address, Bytes size, Gap gap);
/// Fills the page tables of a mapping whose memory is committed, so that touching it costs no page fault.
int populate(Address address, Bytes size);
/// Empties the page tables of a mapping. The memory keeps its bytes.
void unpopulate(Address address, Bytes size);

/// Throws the exception that fits `error`: MappingLimit, DriverOutOfMemory or DriverError.
[[noreturn]] void fail(const char* call, Address address, Bytes size, int error);

}  // namespace vmm::host
