#include "memory/share_transaction.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "memory/this_process.h"

namespace vmm {
namespace {

/// Each process's minimum, for whoever has to change one.
std::string minima_of(const ShareTable& table, Bytes mine) {
  std::string out = std::to_string(mine.count) + " (this process)";
  for (const ShareRecord& each : table.used())
    if (each.used != 0)
      out += ", " + std::to_string(each.minimum) + " (" + each.command.data() + ", pid " +
             std::to_string(each.pid) + ")";
  return out;
}

void require_sense(const ShareTerms& terms) {
  if (terms.minimum > terms.maximum || terms.maximum >= largest_share)
    throw InvalidArgument("minimum is " + std::to_string(terms.minimum.count) + ", budget " +
                          std::to_string(terms.maximum.count) +
                          " bytes; expected a minimum of at most the budget, and a budget below 2^56");
}

void require_minima_fit(const ShareTable& table, const ShareTerms& terms) {
  Bytes largest = terms.maximum, minima = terms.minimum;
  for (const ShareMember& member : members_of(table)) {
    largest = std::max(largest, member.maximum);
    minima += member.minimum;
  }
  if (minima > largest && terms.minimum.count != 0)
    throw InvalidArgument("minimum is " + std::to_string(terms.minimum.count) +
                          " bytes: with the others' it is more than the largest budget of this share, " +
                          std::to_string(largest.count) + ": " + minima_of(table, terms.minimum));
}

/// A free place, which this file has for life from now on.
std::uint32_t occupy_any(ShareFile& file, const ShareTable& table) {
  for (std::uint32_t place = 0; place < share_places; ++place)
    if (table.places[place].used == 0 && file.occupy(place)) return place;
  throw InvalidArgument("share: " + file.path() + " is full: " + std::to_string(share_places) +
                        " processes are in it");
}

ShareRecord new_record(const ShareTerms& terms, std::uint64_t ticket) {
  ShareRecord record;
  record.minimum = terms.minimum.count;
  record.maximum = terms.maximum.count;
  record.priority = terms.priority;
  record.ticket = ticket;
  record.used = 1;
  describe_this_process(record);
  return record;
}

/// Under the file's lock.
ShareSeat take_place(ShareFile& file, const ShareTerms& terms, Log& log) {
  ShareTable table = file.read_or_replace(log);
  file.bury_dead(table, {});
  require_minima_fit(table, terms);
  const std::uint32_t place = occupy_any(file, table);
  table.count = std::max(table.count, std::uint64_t{place} + 1);
  ShareRecord& mine = table.places[place];
  mine = new_record(terms, ++table.tickets);
  auto members = members_of(table);
  const Bytes total = share_total(members);
  mine.grant = std::min(share_answers(total, members)[place].reach.count, mine.minimum);
  if (mine.grant < mine.minimum) mine.wanted = mine.minimum;
  members = members_of(table);
  const ShareAnswer answer = share_answers(total, members)[place];
  file.write(table);
  file.ring();
  return {nullptr, place, mine, answer, total};
}

}  // namespace

ShareTurn::ShareTurn(ShareFile& file, std::uint32_t place, std::uint64_t ticket)
    : file_(file), lock_(file), place_(place), table_(file.read()) {
  if (place >= table_.count || mine().used == 0 || mine().ticket != ticket)
    throw Error("share: this process is not in " + file.path() + " any more");
  look();
  answers_before_ = answers_;
  wanted_before_ = mine().wanted;
}

void ShareTurn::look() {
  members_ = members_of(table_);
  answers_ = share_answers(share_total(members_), members_);
  answers_.resize(std::max<std::size_t>(answers_.size(), place_ + 1));  // also of who has just left
}

bool ShareTurn::bury_dead() {
  if (!file_.bury_dead(table_, place_)) return false;
  look();
  return true;
}

void ShareTurn::commit() {
  file_.write(table_);
  look();
  if (concern_others()) file_.ring();
}

/// Whether somebody else is asked for more, can have now what he wants, or, because of a new want, is to let
/// go of what he does not use.
bool ShareTurn::concern_others() const {
  const ShareRecord& mine = table_.places[place_];
  if (mine.wanted > mine.grant && mine.wanted != wanted_before_) return true;
  const std::vector<ShareAnswer>& answers = answers_before_;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (i == place_) continue;
    const bool known = i < answers.size();
    if (answers_[i].asked > (known ? answers[i].asked : Bytes{})) return true;
    const Bytes wanted = members_[i].wanted;
    if (wanted > members_[i].grant && answers_[i].reach >= wanted && !(known && answers[i].reach >= wanted))
      return true;
  }
  return false;
}

ShareSeat join_share(const std::string& path, const ShareTerms& terms, FileCalls& calls, Log& log) {
  require_sense(terms);
  for (int tries = 0; tries < 100; ++tries) {
    auto file = std::make_unique<ShareFile>(path, ShareFile::Access::join, calls);
    const ShareFile::Locked lock(*file);
    // The last to leave may have removed it meanwhile.
    if (file->is_gone()) continue;
    ShareSeat seat = take_place(*file, terms, log);
    seat.file = std::move(file);
    return seat;
  }
  throw DriverError("share: " + path + " is removed again and again");
}

void leave_share(ShareFile& file, std::uint32_t place, std::uint64_t ticket, Log& log) noexcept {
  try {
    ShareTurn turn(file, place, ticket);
    turn.mine() = {};
    turn.bury_dead();
    turn.commit();
    if (turn.nobody_left() && !file.is_gone()) file.remove();
  } catch (const std::exception& error) {
    log.write(LogLevel::warning, "leaving a share: ", error.what());
  }
  file.close();
}

std::vector<ShareGuest> look_at_share(const std::string& path) {
  FileCalls calls;
  ShareFile file(path, ShareFile::Access::look, calls);
  const ShareFile::Locked lock(file);
  ShareTable table = file.read();
  file.bury_dead(table, {});  // here, not in the file
  const auto members = members_of(table);
  const auto answers = share_answers(share_total(members), members);
  std::vector<ShareGuest> out;
  for (std::size_t i = 0; i < members.size(); ++i)
    if (table.places[i].used != 0) out.push_back({table.places[i], answers[i]});
  return out;
}

}  // namespace vmm
