// The system calls behind the host driver. Those that return int return 0 or an errno.
#pragma once

#include "driver/driver.h"

namespace vmm::host {

inline void* pointer(Address address) { return reinterpret_cast<void*>(address.value); }

/// A sparse memfd that shows in /proc/self/maps as /memfd:NAME. Throws DriverError.
int open_memfd(const char* name);
Bytes memfd_size();
/// Commits memory at `place`, reading as zeros.
int commit_zeros(int fd, Place place, Bytes size);
/// Gives the memory at `page` back to the system.
int punch(int fd, PageHandle page, Bytes size);

/// Makes a range what it is when no page is mapped there: without memory, and absent from forked children.
/// Spends the reserve of mappings if it must.
int map_gap(Address address, Bytes size, Gap gap);
/// Fills the page tables of a mapping whose memory is committed.
int populate(Address address, Bytes size);
/// Empties them; the memory keeps its bytes.
void unpopulate(Address address, Bytes size);

/// Throws the exception that fits `error`: MappingLimit, DriverOutOfMemory or DriverError.
[[noreturn]] void fail(const char* call, Address address, Bytes size, int error);

}  // namespace vmm::host
