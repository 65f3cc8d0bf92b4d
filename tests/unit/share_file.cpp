// The file of a share: who may open it, what is in it, and when it goes.
#include <fcntl.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "check.h"
#include "memory/shares.h"
#include "share_fixtures.h"

using namespace vmm;
using namespace std::chrono_literals;

namespace {

const ShareTerms all_of_it{{}, 64_MiB, 0};

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

}  // namespace

TEST(the_last_to_leave_removes_the_file) {
  ShareFolder folder;
  {
    Member one(folder.file(), all_of_it);
    {
      Member other(folder.file(), all_of_it);
    }
    CHECK(std::filesystem::exists(folder.file()));
  }
  CHECK(!std::filesystem::exists(folder.file()));
}

TEST(minima_that_do_not_fit_are_refused) {
  ShareFolder folder;
  Member one(folder.file(), {40_MiB, 64_MiB, 0});
  CHECK_THROWS(InvalidArgument, "41943040 (", Member(folder.file(), {32_MiB, 32_MiB, 0}));
  CHECK(look_at_share(folder.file()).size() == 1);
  Member large(folder.file(), {32_MiB, 128_MiB, 0});
  CHECK_THROWS(InvalidArgument, "at least the minimum", one.budget->set_limit(30_MiB));
}

TEST(sixty_four_fit) {
  ShareFolder folder;
  std::vector<std::unique_ptr<Member>> members;
  for (int i = 0; i < 64; ++i) members.push_back(std::make_unique<Member>(folder.file(), all_of_it));
  CHECK_THROWS(InvalidArgument, "is full", Member(folder.file(), all_of_it));
  members.pop_back();
  Member last(folder.file(), all_of_it);
}

TEST(what_is_no_table_is_replaced_only_when_nobody_is_in_it) {
  const std::string whole(share_file_bytes, '\7');
  for (const std::string& noise : {std::string("short"), whole, std::string(64, '\0')}) {
    ShareFolder folder;
    write_file(folder.file(), noise);
    {
      Member one(folder.file(), all_of_it);
      CHECK(one.budget->log().drain().size() == 1);
      CHECK(one.take(64_MiB));
      write_file(folder.file(), noise);
      CHECK_THROWS(InvalidArgument, "delete the file", Member(folder.file(), all_of_it));
      one.budget->poll();
      one.budget->poll();
      CHECK(one.budget->log().drain().size() == 1);
      one.budget->give_back(64_MiB);
      CHECK(one.take(64_MiB) && !one.take({1}));  // what it was promised stands
    }
    std::filesystem::remove(folder.file());
  }
}

TEST(another_version_is_said) {
  ShareFolder folder;
  ShareHeader header;
  header.version = 9;
  write_file(folder.file(), std::string(reinterpret_cast<const char*>(&header), sizeof header));
  Member one(folder.file(), all_of_it);
  const auto log = one.budget->log().drain();
  CHECK(log.size() == 1 && log[0].text.find("version 9") != std::string::npos);
}

TEST(what_cannot_be_opened_is_said) {
  ShareFolder folder;
  CHECK_THROWS(DriverError, "No such file", Member(folder.path + "/none/file", all_of_it));
  CHECK_THROWS(DriverError, folder.path, Member(folder.path, all_of_it));
  std::filesystem::create_symlink("/dev/null", folder.path + "/link");
  CHECK_THROWS(DriverError, "link", Member(folder.path + "/link", all_of_it));
}

TEST(pools_of_one_process_have_one_part) {
  ShareFolder folder;
  auto one = part_of_share(folder.file(), all_of_it);
  auto other = part_of_share(folder.file(), all_of_it);
  CHECK(one == other);
  CHECK_THROWS(InvalidArgument, "already", part_of_share(folder.file(), {{}, 32_MiB, 0}));
  one->detach();
  CHECK(one->take(1_MiB, 0, true));
  other->detach();
  CHECK(!one->has_left());
  one->give_back(1_MiB);
  for (int i = 0; i < 1000 && !one->has_left(); ++i) std::this_thread::sleep_for(5ms);
  CHECK(one->has_left() && !std::filesystem::exists(folder.file()));
  const auto next = part_of_share(folder.file(), {{}, 32_MiB, 0});
  CHECK(next != one);
  next->detach();
}

TEST(watchers_bring_what_is_wanted) {
  ShareFolder folder;
  Member holder(folder.file(), all_of_it);
  CHECK(holder.take(60_MiB));
  const auto other = part_of_share(folder.file(), all_of_it);
  std::atomic<int> rooms{0};
  const auto id = other->listen([&](Bytes wanted) { rooms += wanted == Bytes{}; });
  CHECK(!other->take(20_MiB, id, true));
  holder.budget->give_back(60_MiB);
  holder.budget->poll();
  for (int i = 0; i < 1000 && rooms == 0; ++i) std::this_thread::sleep_for(5ms);
  CHECK(rooms == 1 && other->take(20_MiB, id, true));
  other->stop_listening(id);
  other->give_back(20_MiB);
  other->detach();
}
