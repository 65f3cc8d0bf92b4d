#include "engine/rows.h"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/pager.h"

namespace vmm {
namespace {

/// Stores `to` where changes(value, to) holds, also while other threads store.
template <class Changes>
void set_where(std::atomic<std::uint64_t>& value, std::uint64_t to, Changes changes) {
  std::uint64_t before = value.load();
  while (changes(before, to) && !value.compare_exchange_weak(before, to)) continue;
}

}  // namespace

Rows::Pin::Pin(std::shared_ptr<Rows> rows, Spans spans) : rows_(std::move(rows)), spans_(std::move(spans)) {
  std::lock_guard lock(rows_->mutex_);
  place_ = rows_->pins_.insert(rows_->pins_.end(), this);
}

Rows::Pin::~Pin() {
  if (!rows_->pool().fork_guard().in_child()) rows_->unpin(*this);
}

Rows::Rows(std::shared_ptr<Pager> pager, std::shared_ptr<Lease> lease, const RowsShape& shape)
    : pager_(std::move(pager)),
      lease_(std::move(lease)),
      shape_(shape),
      page_(lease_->shape().page_bytes),
      usable_({lease_->size() / page_}),
      floors_(shape.rows),
      marks_(shape.rows) {
  if (shape.rows == 0 || shape.tokens.count == 0 || shape.record_bytes.count == 0)
    throw InvalidArgument("rows, tokens, record_bytes: expected at least 1 of each");
  if (lease_->size() / shape.rows < row_bytes())
    throw InvalidArgument("rows: they are larger than the lease of " + std::to_string(lease_->size().count) +
                          " bytes");
}

std::shared_ptr<Rows> Rows::make(std::shared_ptr<Pager> pager, std::shared_ptr<Lease> lease,
                                 const RowsShape& shape) {
  return share(std::make_shared<Rows>(std::move(pager), std::move(lease), shape));
}

std::shared_ptr<Rows> Rows::observer() const { return std::static_pointer_cast<Rows>(self_.lock()); }

void Rows::require_open() const {
  pool().fork_guard().require_parent("this tensor");
  if (ended_) throw Closed("this tensor is closed");
}

ByteRange Rows::bytes_of(std::uint64_t row, Tokens from, Tokens to) const {
  return {row_bytes() * row + shape_.record_bytes * from.count,
          shape_.record_bytes * (to.count - std::min(from, to).count)};
}

std::uint64_t Rows::end_page(const ByteRange& span) const {
  return round_up(span.offset + span.size, page_) / page_;
}

Rows::Spans Rows::spans_of(const Region& region) const {
  Spans out = spans(region, page_);
  if (!out.empty() && out.back().offset + out.back().size > row_bytes() * shape_.rows)
    throw InvalidArgument("region: not inside the tensor");
  return out;
}

std::vector<PageRange> Rows::pages_of(const Spans& spans) const {
  std::vector<PageRange> out;
  out.reserve(spans.size());
  std::uint64_t next = 0;
  for (const ByteRange& span : spans) {
    const std::uint64_t first = std::max(next, first_page(span));  // neighbours may share a page
    next = std::max(next, end_page(span));
    if (first < next) out.push_back({{static_cast<std::uint32_t>(first)}, {next - first}});
  }
  return out;
}

bool Rows::usable(const Spans& spans) const {
  return std::ranges::all_of(
      spans, [&](const ByteRange& span) { return usable_.has_all(first_page(span), end_page(span)); });
}

void Rows::touch(const Spans& spans) {
  require_open();
  const bool mapping = !usable(spans);
  if (mapping) map(spans);
  mark_used(spans);
  if (mapping) note_growth(spans);
}

std::shared_ptr<Rows::Pin> Rows::pin(Spans spans) {
  // The pin comes first, so that nobody can release the pages before they are touched.
  auto pin = std::make_shared<Pin>(observer(), std::move(spans));
  touch(pin->spans_);
  return pin;
}

void Rows::reserve(Tokens to) {
  require_open();
  if (to > shape_.tokens)
    throw InvalidArgument("tokens is " + std::to_string(to.count) + "; expected at most " +
                          std::to_string(shape_.tokens.count));
  Spans spans;
  for (std::uint64_t row = 0; row < shape_.rows; ++row) spans.push_back(bytes_of(row, {}, to));
  if (!usable(spans)) map(spans);
}

void Rows::map(const Spans& spans) {
  const Pin against_release(observer(), spans);
  const std::vector<PageRange> ranges = pages_of(spans);
  std::lock_guard keeping(keeping_);
  map_counting_stalls(pool(), [&] { return pool().map(lease_->reservation(), ranges, {}); });
  std::lock_guard lock(mutex_);
  for (PageIndex page : each_page(ranges)) {
    usable_.add(page.value);
    doomed_.erase(page.value);
  }
}

/// Calls visit(row, from, to) for the bytes [from, to) of each row that the spans touch.
template <class Visit>
void Rows::for_each_row(const Spans& spans, Visit visit) const {
  for (const ByteRange& span : spans) {
    const Bytes end = span.offset + span.size;
    for (std::uint64_t row = span.offset / row_bytes(); row_bytes() * row < end; ++row) {
      const Bytes start = row_bytes() * row;
      visit(row, std::max(span.offset, start) - start, std::min(end, start + row_bytes()) - start);
    }
  }
}

void Rows::mark_used(const Spans& spans) {
  for_each_row(spans, [&](std::uint64_t row, Bytes from, Bytes to) {
    set_where(floors_[row], from / shape_.record_bytes, std::greater{});
    set_where(marks_[row], round_up(to, shape_.record_bytes) / shape_.record_bytes, std::less{});
  });
}

void Rows::note_growth(const Spans& spans) {
  if (pager_->options().lookahead.count == 0) return;
  {
    std::lock_guard lock(mutex_);
    for_each_row(spans, [&](std::uint64_t row, Bytes, Bytes) { grown_.push_back(row); });
  }
  pager_->notify(*this);
}

Ahead Rows::map_ahead(Bytes batch, Pages lookahead) {
  std::vector<std::uint64_t> rows;
  {
    std::lock_guard lock(mutex_);
    rows.swap(grown_);
  }
  std::ranges::sort(rows);
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  Spans ahead;
  for (std::uint64_t row : rows) {
    const ByteRange used = bytes_of(row, {}, mark(row));
    if (used.size.count == 0 || ended_) continue;
    const Bytes from = page_ * end_page(used);
    const Bytes row_end = row_bytes() * (row + 1);
    if (from < row_end) ahead.push_back({from, std::min(page_ * lookahead.count, row_end - from)});
  }
  MapOptions options;
  options.need = Need::none;  // a guess must not cost others what they could use again
  options.wait = false;
  options.at_most = {std::max<std::uint64_t>(1, batch / page_)};
  const MapResult result = pool().map(lease_->reservation(), pages_of(ahead), options);
  pool().counters().pages_mapped_ahead.add(result.mapped.count);
  std::lock_guard lock(mutex_);
  if (ended_) release_locked({}, shape_.tokens);
  const bool more = result.mapped == options.at_most && !ended_;
  if (more) grown_.insert(grown_.end(), rows.begin(), rows.end());
  return more ? Ahead::more : Ahead::done;
}

}  // namespace vmm
