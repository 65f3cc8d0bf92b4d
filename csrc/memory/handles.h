// Move-only owners of what a driver gives out: each knows its undo call.
#pragma once

#include <utility>

#include "base/undo.h"
#include "driver/driver.h"

namespace vmm {

/// Reserved addresses. The driver or arena that they are from gets them back when this dies.
template <class Source>
class OwnedRange {
 public:
  OwnedRange(Source& source, Address base, Bytes size) noexcept
      : source_(&source), base_(base), size_(size) {}
  OwnedRange(OwnedRange&& other) noexcept
      : source_(std::exchange(other.source_, nullptr)), base_(other.base_), size_(other.size_) {}
  OwnedRange& operator=(OwnedRange&&) = delete;
  ~OwnedRange() {
    if (source_ != nullptr) undo_or_leak([this] { source_->free_reservation(base_, size_); });
  }

  Address base() const noexcept { return base_; }
  Bytes size() const noexcept { return size_; }
  bool contains(Address address) const noexcept { return address >= base_ && address < base_ + size_; }

 private:
  Source* source_;
  Address base_;
  Bytes size_;
};

/// One driver page; empty until created.
class CreatedPage {
 public:
  CreatedPage() = default;
  CreatedPage(Driver& driver, Bytes page_bytes, Place place)
      : driver_(&driver), page_(driver.create(page_bytes, place)) {}
  CreatedPage(CreatedPage&& other) noexcept
      : driver_(std::exchange(other.driver_, nullptr)), page_(other.page_) {}
  CreatedPage& operator=(CreatedPage&& other) noexcept {
    std::swap(driver_, other.driver_);
    std::swap(page_, other.page_);
    return *this;
  }
  ~CreatedPage() {
    undo_or_leak([this] { release(); });
  }

  explicit operator bool() const noexcept { return driver_ != nullptr; }
  PageHandle get() const noexcept { return page_; }

  /// Gives the page back to the driver. When this throws, the page is still owned.
  void release() {
    if (driver_ == nullptr) return;
    driver_->release(page_);
    driver_ = nullptr;
  }

 private:
  Driver* driver_ = nullptr;
  PageHandle page_;
};

}  // namespace vmm
