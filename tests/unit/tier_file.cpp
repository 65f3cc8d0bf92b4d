// The file of slots: every system call made to fail, cut short, or refused for good; and the host's slabs.
#include <sys/wait.h>

#include <algorithm>
#include <fstream>

#include "tier_fixture.h"

using namespace vmm;

namespace {

std::size_t open_files() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

/// Makes a store, writes six pages at once, reads them. Whatever fails, it fails with an error of ours or as
/// the outcome of a transfer, and what is said to be done is.
void go_through(StoreUnderTest& made, bool direct) {
  try {
    open_file(made, 8, direct);
  } catch (const Error&) {
    return;
  }
  TestPages pages(6);
  std::vector<Transfer> all;
  for (const TierSlot slot : made.store->take(6)) {
    pages.fill(all.size(), all.size() + 1);
    all.push_back({TransferKind::write, slot, pages.at(all.size()), all.size()});
  }
  CHECK(made.store->submit(all) == 6);
  std::vector<Transfer> reads;
  for (const Completion& end : collect(*made.store, 6)) {
    CHECK(end.outcome == Outcome::done || (end.outcome == Outcome::failed && end.error != 0));
    CHECK(pages.is(end.transfer.tag, end.transfer.tag + 1));
    if (end.outcome == Outcome::done)
      reads.push_back({TransferKind::read, end.transfer.slot, end.transfer.memory, end.transfer.tag});
  }
  for (const Transfer& each : reads) pages.fill(each.tag, 0);
  CHECK(made.store->submit(reads) == reads.size());
  for (const Completion& end : collect(*made.store, reads.size())) {
    CHECK(end.outcome == Outcome::done || (end.outcome == Outcome::failed && end.error != 0));
    CHECK(end.outcome != Outcome::done || pages.is(end.transfer.tag, end.transfer.tag + 1));
  }
}

/// Fails the n-th call, for every n until there is none such.
void fail_each_call(int error, bool direct) {
  const std::size_t files = open_files();
  int failed = 0;
  for (int n = 1;; ++n) {
    bool reached = false;
    StoreUnderTest made;
    made.calls->refuse = [&](const std::string&, int call) {
      if (call != n) return 0;
      reached = true;
      return error;
    };
    go_through(made, direct);
    made.store.reset();
    CHECK(made.directory->is_empty() || !direct);
    if (!reached) break;
    ++failed;
  }
  CHECK(failed >= 6);  // open, fallocate, the first read and write, and one call each way at least
  CHECK(open_files() == files);
}

}  // namespace

TEST(every_call_fails_once) {
  for (int error : {EIO, ENOSPC, EINTR, EINVAL, EMFILE})
    for (bool direct : {true, false}) fail_each_call(error, direct);
}

TEST(every_call_is_cut_short) {
  for (std::size_t most : {0, 1, 100, 4096, 5000, 20000}) {
    for (int n = 1; n < 16; ++n) {
      StoreUnderTest made;
      made.calls->most = [&](int call) { return call == n ? most : SIZE_MAX; };
      go_through(made, n % 2 == 0);
    }
  }
}

TEST(short_calls_are_continued) {
  for (bool direct : {true, false}) {
    StoreUnderTest made;
    open_file(made, 8, direct);
    made.calls->most = [](int) -> std::size_t { return 5000; };
    TestPages pages(2);
    pages.fill(0, 9);
    const TierSlot slot = made.store->take(1)[0];
    const int before = made.calls->made;
    CHECK(write(*made.store, slot, pages.at(0)) == Outcome::done);
    CHECK(made.calls->made - before >= 4);
    CHECK(read(*made.store, slot, pages.at(1)) == Outcome::done && pages.is(1, 9));
  }
}

TEST(calls_that_are_always_interrupted_end_nevertheless) {
  StoreUnderTest made;
  open_file(made, 8);
  made.calls->refuse = [](const std::string&, int) { return EINTR; };
  TestPages pages(1);
  const TierSlot slot = made.store->take(1)[0];
  const Completion end = transfer(*made.store, TransferKind::write, slot, pages.at(0));
  CHECK(end.outcome == Outcome::failed && end.error == EINTR);
}

TEST(a_file_that_somebody_cuts_short_loses_what_was_there_and_nothing_else) {
  StoreUnderTest made;
  open_file(made, 8);
  TestPages pages(2);
  pages.fill(0, 9);
  const auto slots = made.store->take(4);
  for (const TierSlot slot : slots) CHECK(write(*made.store, slot, pages.at(0)) == Outcome::done);
  CHECK(ftruncate(made.calls->file, static_cast<off_t>(page_bytes.count * 2)) == 0);
  CHECK(read(*made.store, slots[1], pages.at(1)) == Outcome::done && pages.is(1, 9));
  const Completion end = transfer(*made.store, TransferKind::read, slots[2], pages.at(1));
  CHECK(end.outcome == Outcome::failed && end.error == EIO);
  // It grows again and has zeros there, which are not what was written.
  const TierSlot later = made.store->take(1)[0];
  CHECK(write(*made.store, later, pages.at(0)) == Outcome::done);
  CHECK(read(*made.store, slots[2], pages.at(1)) == Outcome::corrupt);
  CHECK(read(*made.store, later, pages.at(1)) == Outcome::done && pages.is(1, 9));
}

TEST(a_file_system_without_unnamed_files_gets_one_whose_name_is_removed) {
  StoreUnderTest made;
  made.calls->refuses_tmpfile = true;
  go_through(made, true);
  CHECK(made.store != nullptr && made.directory->is_empty());
}

TEST(without_direct_calls_there_is_one_warning) {
  for (bool at_open : {true, false}) {
    StoreUnderTest made;
    made.calls->refuses_direct = at_open;
    bool refused = false;
    made.calls->refuse = [&](const std::string& call, int) {
      const bool refuses = !at_open && call == "preadv" && !refused;
      refused |= refuses;
      return refuses ? EINVAL : 0;
    };
    go_through(made, true);
    CHECK(made.store != nullptr && made.store->alignment() == 1);
    const auto said = made.log->drain();
    CHECK(said.size() == 1 && said[0].level == LogLevel::warning);
    CHECK(said[0].text.find("O_DIRECT in " + made.directory->path()) != std::string::npos);
  }
  StoreUnderTest asked;  // who did not want them is not warned
  open_file(asked, 8, false);
  CHECK(asked.log->drain().empty());
}

TEST(where_room_cannot_be_set_aside_there_is_one_warning) {
  StoreUnderTest made;
  made.calls->refuse = [](const std::string& call, int) { return call == "fallocate" ? EOPNOTSUPP : 0; };
  go_through(made, false);
  CHECK(made.store != nullptr);
  const auto said = made.log->drain();
  CHECK(said.size() == 1 && said[0].text.find("set aside") != std::string::npos);
}

TEST(bad_arguments_of_a_file_are_named) {
  StoreUnderTest made;
  auto make = [&](const std::string& directory, Bytes capacity, Bytes slot) {
    make_slot_file({.directory = directory, .capacity = capacity, .slot = slot}, made.calls,
                   std::make_shared<RealClock>(), made.log);
  };
  const std::string here = made.directory->path();
  CHECK_THROWS(InvalidArgument, "directory: ", make(here + "/none", 1_MiB, 64_KiB));
  CHECK_THROWS(InvalidArgument, "directory: ", make("", 1_MiB, 64_KiB));
  std::ofstream(here + "/file") << "x";
  CHECK_THROWS(InvalidArgument, "directory: ", make(here + "/file", 1_MiB, 64_KiB));
  CHECK_THROWS(InvalidArgument, "capacity: 65535 bytes are less", make(here, {65535}, 64_KiB));
  CHECK_THROWS(InvalidArgument, "slot: ", make(here, 1_MiB, {5000}));
  CHECK_THROWS(InvalidArgument, "slot: ", make(here, 1_MiB, {0}));
  CHECK_THROWS(InvalidArgument, "too many", make(here, {std::uint64_t{1} << 60}, 4_KiB));
  CHECK_THROWS(InvalidArgument, "capacity: ", make(here, {std::uint64_t{1} << 50}, 2_MiB));
  made.calls->refuse = [](const std::string& call, int) { return call == "open" ? EACCES : 0; };
  CHECK_THROWS(InvalidArgument, "Permission denied", make(here, 1_MiB, 64_KiB));
  made.calls->refuse = [](const std::string& call, int) { return call == "fallocate" ? ENOSPC : 0; };
  CHECK_THROWS(InvalidArgument, "bytes are free", make(here, 1_MiB, 64_KiB));
}

TEST(a_forked_child_has_neither_the_store_nor_the_file) {
  StoreUnderTest made;
  open_file(made, 8);
  const pid_t child = fork();
  if (child == 0) {
    bool forked = false;
    try {
      made.store->take(1);
    } catch (const Forked&) {
      forked = true;
    }
    const bool closed = fcntl(made.calls->file, F_GETFD) == -1;
    made.store.reset();
    _exit(forked && closed ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(made.store->take(8).size() == 8);
}
