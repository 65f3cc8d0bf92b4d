// One look at a share's table, and one change of it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "memory/share_file.h"

namespace vmm {

struct ShareTerms {
  Bytes minimum;  // is promised to this process, whatever others do
  Bytes maximum;  // its own budget
  std::int32_t priority = 0;

  bool operator==(const ShareTerms&) const = default;
};

/// While this lives nobody else changes the table.
class ShareTurn {
 public:
  /// Throws what ShareFile::read does, and Error where the place is not this process's any more.
  ShareTurn(ShareFile& file, std::uint32_t place, std::uint64_t ticket);

  /// To be changed, for commit().
  ShareRecord& mine() noexcept { return table_.places[place_]; }
  /// Of the table as it was read or committed.
  const ShareAnswer& answer() const { return answers_[place_]; }
  Bytes total() const { return share_total(members_); }
  bool bury_dead();
  /// Writes the table, and wakes the others where it matters to them. Nothing has changed when it throws.
  void commit();
  bool nobody_left() const noexcept { return table_.count == 0; }

 private:
  void look();
  bool concern_others() const;

  ShareFile& file_;
  const ShareFile::Locked lock_;
  const std::uint32_t place_;
  ShareTable table_;
  std::vector<ShareMember> members_;
  std::vector<ShareAnswer> answers_;
  // Of the table as it was read:
  std::vector<ShareAnswer> answers_before_;
  std::uint64_t wanted_before_ = 0;
};

/// What a process has when it has joined.
struct ShareSeat {
  std::unique_ptr<ShareFile> file;
  std::uint32_t place;
  ShareRecord record;
  ShareAnswer answer;
  Bytes total;
};

/// Throws what ShareFile does; and InvalidArgument for minima that are together more than the largest budget,
/// and when all places are taken. Then nothing has changed.
ShareSeat join_share(const std::string& path, const ShareTerms& terms, FileCalls& calls, Log& log);

/// The last to leave removes the file. What fails is logged: whoever has left is as good as dead.
void leave_share(ShareFile& file, std::uint32_t place, std::uint64_t ticket, Log& log) noexcept;

/// One who has a part of a share, for those who look at it from outside.
struct ShareGuest {
  ShareRecord record;
  ShareAnswer answer;
};

/// Those who live. Throws what ShareFile does.
std::vector<ShareGuest> look_at_share(const std::string& path);

}  // namespace vmm
