// What an address is.
#include <cstring>

#include "api.h"
#include "call.h"

using namespace standin;

namespace {

/// An address that the driver knows, or one that it does not.
struct Known {
  bool device = false;
  bool host = false;
  bool mapped = false;
  int ordinal = 0;
  Address range = 0;  // the reservation or the allocation
  Size range_size = 0;
  Address mapping = 0;
  Size mapping_size = 0;
};

Known look(Ledger& ledger, Address address) {
  Known out;
  if (const Reservation* reservation = find_containing(ledger.reservations, address)) {
    out = {.device = true, .range = reservation->start, .range_size = reservation->size};
    if (const Mapping* mapping = find_containing(ledger.mappings, address)) {
      out.mapped = true;
      out.ordinal = mapping->handle->physical->device;
      out.mapping = mapping->start;
      out.mapping_size = mapping->size;
    }
  } else if (const Allocation* allocation = find_containing(ledger.allocations, address)) {
    out = {true,
           false,
           true,
           allocation->device,
           allocation->start,
           allocation->size,
           allocation->start,
           allocation->size};
  } else if (const Pinned* pinned = find_containing(ledger.pinned, address)) {
    out = {false, true, true, 0, pinned->start, pinned->size, pinned->start, pinned->size};
  }
  return out;
}

template <class Value>
CUresult put(void* data, Value value) {
  std::memcpy(data, &value, sizeof value);
  return CUDA_SUCCESS;
}

/// Writes zeros of the attribute's size for what is unknown, and returns INVALID_VALUE.
CUresult answer(Call& call, const Known& known, int attribute, Address address, void* data) {
  const bool in_host = known.host || (known.mapped && known.ordinal == Memory::host);
  const bool any = known.device || known.host;
  const auto missing = [&](auto zero) {
    put(data, zero);
    return CUDA_ERROR_INVALID_VALUE;
  };
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: {  // memory of VMM calls belongs to no context
      const bool owned = any && call.s.ledger.reservation_of(address, 1) == nullptr;
      return owned ? put(data, call.s.contexts[static_cast<std::size_t>(known.ordinal)].handle())
                   : (missing(CUcontext{}), any ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
    }
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return any ? put(data, in_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE) : missing(0U);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      return any ? put(data, CUdeviceptr{address}) : missing(CUdeviceptr{});
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      return in_host ? put(data, address) : missing(Address{});
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return any ? put(data, 0U) : missing(0U);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return any ? put(data, in_host ? -2 : known.ordinal) : missing(-2);
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      return any ? put(data, known.range) : missing(Address{});
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      return any ? put(data, known.range_size) : missing(Size{});
    case CU_POINTER_ATTRIBUTE_MAPPED:
      return put(data, known.mapped ? 1 : 0);
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
      return known.mapped ? put(data, known.mapping) : missing(Address{});
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
      return known.mapped ? put(data, known.mapping_size) : missing(Size{});
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
      return any ? put(data, std::uint64_t{0}) : missing(Size{});
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
}

}  // namespace

STANDIN_API cuPointerGetAttribute(void* data, int attribute, CUdeviceptr address) {
  return enter("cuPointerGetAttribute", plain, [&](Call& call) -> CUresult {
    if (data == nullptr) return CUDA_ERROR_INVALID_VALUE;
    return answer(call, look(call.s.ledger, address), attribute, address, data);
  });
}

STANDIN_API cuPointerGetAttributes(unsigned count, int* attributes, void** data, CUdeviceptr address) {
  return enter("cuPointerGetAttributes", plain, [&](Call& call) -> CUresult {
    if (count == 0 || attributes == nullptr || data == nullptr) return CUDA_ERROR_INVALID_VALUE;
    const Known known = look(call.s.ledger, address);
    for (unsigned at = 0; at < count; ++at)  // what is unknown is answered with zeros
      if (answer(call, known, attributes[at], address, data[at]) == CUDA_ERROR_NOT_SUPPORTED)
        return CUDA_ERROR_NOT_SUPPORTED;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemGetAddressRange_v2(CUdeviceptr* base, std::size_t* size, CUdeviceptr address) {
  return enter("cuMemGetAddressRange", needs_context, [&](Call& call) -> CUresult {
    const Known known = look(call.s.ledger, address);
    if (!known.mapped) return CUDA_ERROR_NOT_FOUND;
    if (base != nullptr) *base = known.mapping;  // the single mapping, not the reservation
    if (size != nullptr) *size = known.mapping_size;
    return CUDA_SUCCESS;
  });
}
