// What the drivers that stand around another driver have in common.
#pragma once

#include <memory>
#include <utility>

#include "base/lock.h"
#include "driver/driver.h"

namespace vmm {

/// It passes every call on to the driver within, but for those that the class derived from it makes itself.
/// It can do what that driver can.
class DriverDecorator : public Driver, protected Gaps, protected Exports, protected HostCopies {
 public:
  explicit DriverDecorator(std::shared_ptr<Driver> inner) : inner_(std::move(inner)) {}

  const Capabilities& capabilities() const noexcept override { return inner_->capabilities(); }
  Gaps* gaps() noexcept override { return inner_->gaps() == nullptr ? nullptr : this; }
  Exports* exports() noexcept override { return inner_->exports() == nullptr ? nullptr : this; }
  HostCopies* host_copies() noexcept override { return inner_->host_copies() == nullptr ? nullptr : this; }
  Address reserve(Bytes size, Bytes alignment) override { return inner().reserve(size, alignment); }
  void free_reservation(Address base, Bytes size) override { inner().free_reservation(base, size); }
  PageHandle create(Bytes page, Place place) override { return inner().create(page, place); }
  void release(PageHandle page) override { inner().release(page); }
  void map(std::span<const PageMapping> pages) override { inner().map(pages); }
  void set_access(std::span<const PageMapping> pages) override { inner().set_access(pages); }
  void unmap(std::span<const PageMapping> pages, std::size_t& done) override { inner().unmap(pages, done); }
  void copy(Address to, Address from, Bytes size, StreamHandle stream) override {
    inner().copy(to, from, size, stream);
  }
  void zero(std::span<const MemoryRange> ranges, StreamHandle stream) override {
    inner().zero(ranges, stream);
  }
  StreamHandle create_stream() override { return inner().create_stream(); }
  void destroy_stream(StreamHandle stream) override { inner().destroy_stream(stream); }
  EventHandle record(StreamHandle stream) override { return inner().record(stream); }
  bool capturing(StreamHandle stream) override { return inner().capturing(stream); }
  bool query(EventHandle event) override { return inner().query(event); }
  void wait(EventHandle event) override { inner().wait(event); }
  void destroy_event(EventHandle event) override { inner().destroy_event(event); }
  void bind_thread() override { inner().bind_thread(); }
  void together(const std::function<void()>& work) override { inner().together(work); }
  std::uint64_t mappings_left() const noexcept override { return inner_->mappings_left(); }

 protected:
  /// The driver within, which is about to be called.
  Driver& inner() const {
    locks::before_driver_call();
    return *inner_;
  }
  void set_gap(Address start, Bytes size, Gap gap) override { inner().gaps()->set_gap(start, size, gap); }
  ExportedPage export_page(Address address) override { return inner().exports()->export_page(address); }
  std::byte* allocate_host(Bytes size) override { return inner().host_copies()->allocate_host(size); }
  void release_host(std::byte* memory) override { inner().host_copies()->release_host(memory); }
  void copy_out(std::byte* to, Address from, Bytes size, StreamHandle stream) override {
    inner().host_copies()->copy_out(to, from, size, stream);
  }
  void copy_in(Address to, const std::byte* from, Bytes size, StreamHandle stream) override {
    inner().host_copies()->copy_in(to, from, size, stream);
  }
  void finish(StreamHandle stream) override { inner().host_copies()->finish(stream); }

 private:
  const std::shared_ptr<Driver> inner_;
};

}  // namespace vmm
