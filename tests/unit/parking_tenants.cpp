// Sequences that are parked, of a tenant that may not keep more than some pages.
#include "check.h"
#include "parked_fixture.h"

using namespace vmm;

namespace {

Need need_of(const Parked& test, const Sequence& sequence) {
  const Pool::Needs locked(*test.pool);
  return test.leases[0]->reservation().table[{16 * sequence.slot}].need;
}

}  // namespace

/// While a page is copied it is kept.
TEST(what_may_not_be_kept_is_not_copied) {
  Parked test({.budget = 64_KiB * 32, .limit = 64_KiB * 6, .write_through = true});
  Sequence running = test.make(4);
  const Sequence left = test.serve(tokens_from(1, 2 * tokens_a_page));
  test.close(left);
  CHECK(test.parking->hold(UnitId{1}));
  test.end();
  test.step(running, tokens_from(7, 2 * tokens_a_page));  // all that the tenant may keep
  test.parking->release(UnitId{1}, {});
  CHECK(comes([&] { return need_of(test, left) == Need::none; }));  // who only guesses may take it
  CHECK(test.figures().cleaned == 0 && test.intact(running));
}

/// Its pages lie in two reservations, each of which alone could be kept.
TEST(what_comes_back_is_not_kept_beyond_a_limit) {
  Parked test({.budget = 64_KiB * 32, .limit = 64_KiB * 6, .leases = 2, .write_through = true});
  Sequence idle = test.make(2);
  test.end();
  test.park(idle);
  CHECK(comes([&] { return test.figures().cleaned == 4; }));
  Sequence running = test.make(2);
  CHECK_THROWS(OutOfPages, "", test.more(idle));
  test.pool->check();
  test.close(running);
  test.end();
  test.more(idle);
  CHECK(test.intact(idle));
}
