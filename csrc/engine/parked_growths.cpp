#include "engine/parked_growths.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/undo.h"

namespace vmm {

ParkedGrowths::ParkedGrowths(std::shared_ptr<Parking> parking, std::vector<Layer> layers,
                             const ParkHint& hint)
    : parking_(std::move(parking)), layers_(std::move(layers)) {
  parking_->serve(layers_.front().growth->page_bytes());
  until_ = pool().epochs().fence();
  // The unit owns the growths: a tier may copy their pages when we have ended.
  unit_ = parking_->add(std::make_shared<std::vector<Layer>>(layers_));
  std::size_t parked = 0;
  try {
    std::vector<ParkedPage> pages;
    for (const Layer& each : layers_) {
      const std::vector<ParkedPage> some = each.growth->pages(each.length);
      pages.insert(pages.end(), some.begin(), some.end());
    }
    for (; parked < layers_.size(); ++parked) layers_[parked].growth->park(layers_[parked].length, until_);
    parking_->park(unit_, std::move(pages), until_, hint);
  } catch (...) {
    for (std::size_t i = 0; i < parked; ++i) layers_[i].growth->resume(layers_[i].length);
    parking_->forget(unit_);
    throw;
  }
}

ParkedGrowths::~ParkedGrowths() {
  if (parked_) undo_or_leak([this] { parking_->forget(unit_); });
}

void ParkedGrowths::await_all() {
  for (;;) {
    const Nanoseconds now = pool().clock().now();
    switch (parking_->want(unit_, now, true)) {
      case Presence::there:
        return;
      case Presence::no_memory: {
        Bytes asked;
        for (const Layer& each : layers_) asked += each.growth->live(each.length);
        throw Pool::Needs(pool()).out_of_pages(asked, layers_.front().growth->tenant());
      }
      case Presence::coming:
        parking_->await();
        parking_->waited(pool().clock().now() - now);
    }
  }
}

/// All of them are there, and kept. What comes after their tokens is mapped.
void ParkedGrowths::adopt_all() {
  std::size_t adopted = 0;
  try {
    for (; adopted < layers_.size(); ++adopted)
      layers_[adopted].growth->adopt(layers_[adopted].length, until_);
  } catch (...) {
    for (std::size_t i = 0; i < adopted; ++i) layers_[i].growth->park(layers_[i].length, until_);
    throw;
  }
}

std::optional<Tokens> ParkedGrowths::wake() {
  try {
    await_all();
    adopt_all();
  } catch (...) {
    parking_->unwant(unit_);
    throw;
  }
  const Tokens shortest = std::ranges::min(layers_, {}, &Layer::length).length;
  const std::optional<Tokens> lost = parking_->take(unit_, shortest);
  parking_->forget(unit_);  // copies are not carried on: rows may have other pages when it is parked again
  parked_ = false;
  return lost;
}

}  // namespace vmm
