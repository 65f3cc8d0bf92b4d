#include "bindings/dlpack.h"

#include <string>
#include <utility>

#include "base/error.h"

namespace vmm {
namespace {

// The part of the DLPack ABI that is needed; layouts are fixed by its specification.
struct DLDevice {
  std::int32_t device_type;
  std::int32_t device_id;
};
struct DLDataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor*);
};
static_assert(sizeof(DLTensor) == 48 && sizeof(DLManagedTensor) == 64);

constexpr std::int32_t device_type_cpu = 1;
constexpr std::int32_t device_type_cuda = 2;
constexpr const char* capsule_name = "dltensor";

struct Exported {
  DLManagedTensor managed{};
  std::shared_ptr<const void> keep;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
};

/// The deleter is C++, because it runs where the last tensor dies: in any thread, without the GIL, and even
/// after the interpreter has ended.
void destroy(DLManagedTensor* managed) { delete static_cast<Exported*>(managed->manager_ctx); }

void destroy_unconsumed(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, capsule_name)) return;  // consumed: the consumer destroys it
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, capsule_name));
  managed->deleter(managed);
}

void check(const Lease& lease, const TensorSpec& spec) {
  if (spec.shape.size() != spec.strides.size())
    throw InvalidArgument("strides: expected one for each of the " + std::to_string(spec.shape.size()) +
                          " dimensions of shape");
  if (spec.type_bits == 0 || spec.type_bits % 8 != 0)
    throw InvalidArgument("type_bits: expected a positive multiple of 8");
  __extension__ using wide = unsigned __int128;  // so that no product of bad input wraps
  wide last = 0;
  bool empty = false;
  for (std::size_t i = 0; i < spec.shape.size(); ++i) {
    if (spec.shape[i] < 0 || spec.strides[i] < 0)
      throw InvalidArgument("shape, strides: expected no negative number");
    if (spec.shape[i] == 0) {
      empty = true;
      continue;
    }
    last += static_cast<wide>(spec.shape[i] - 1) * static_cast<wide>(spec.strides[i]);
  }
  const wide end = empty ? 0 : (last + 1) * (spec.type_bits / 8) + spec.offset_bytes;
  if (end > lease.size().count || spec.offset_bytes > lease.size().count)
    throw InvalidArgument("offset_bytes, shape, strides: an element would lie beyond the lease of " +
                          std::to_string(lease.size().count) + " bytes");
}

DLDevice device_of(const Lease& lease) {
  const Capabilities& device = lease.pool().driver().capabilities();
  if (device.host_accessible) return {device_type_cpu, 0};
  return {device_type_cuda, device.device};
}

}  // namespace

pybind11::capsule export_tensor(const Lease& lease, std::shared_ptr<const void> keep,
                                const TensorSpec& spec) {
  check(lease, spec);
  auto exported = std::make_unique<Exported>();
  exported->shape = spec.shape;
  exported->strides = spec.strides;
  exported->managed.dl_tensor = {
      .data = reinterpret_cast<void*>((lease.base() + Bytes{spec.offset_bytes}).value),
      .device = device_of(lease),
      .ndim = static_cast<std::int32_t>(spec.shape.size()),
      .dtype = {spec.type_code, spec.type_bits, 1},
      .shape = exported->shape.data(),
      .strides = exported->strides.data(),
      .byte_offset = 0};  // some consumers ignore it: the offset is in `data`
  exported->keep = std::move(keep);
  exported->managed.manager_ctx = exported.get();
  exported->managed.deleter = destroy;
  pybind11::capsule capsule(&exported->managed, capsule_name, destroy_unconsumed);
  (void)exported.release();
  return capsule;
}

}  // namespace vmm
