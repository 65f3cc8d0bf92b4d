// Who of a share may have how much, and who is asked: examples, and random tables against simple rules.
#include "policy/share_policy.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "check.h"

using namespace vmm;

namespace {

using Members = std::vector<ShareMember>;

ShareMember member(std::uint64_t minimum, std::uint64_t maximum, int priority, std::uint64_t grant,
                   std::uint64_t wanted = 0) {
  return {{minimum}, {maximum}, priority, {grant}, {wanted}};
}

std::vector<ShareAnswer> answers(const Members& members) {
  return share_answers(share_total(members), members);
}

std::vector<std::uint64_t> asked(const Members& members) {
  std::vector<std::uint64_t> out;
  for (const ShareAnswer& answer : answers(members)) out.push_back(answer.asked.count);
  return out;
}

std::vector<std::uint64_t> reach(const Members& members) {
  std::vector<std::uint64_t> out;
  for (const ShareAnswer& answer : answers(members)) out.push_back(answer.reach.count);
  return out;
}

using Numbers = std::vector<std::uint64_t>;

}  // namespace

TEST(who_is_alone_may_have_all) { CHECK(reach({member(0, 100, 0, 10)}) == Numbers{100}); }

TEST(minima_of_others_are_set_aside) {
  CHECK((reach({member(0, 100, 0, 10), member(30, 50, 0, 0)}) == Numbers{70, 50}));
}

TEST(the_larger_gives_to_the_smaller_until_they_are_even) {
  CHECK((asked({member(0, 100, 0, 80), member(0, 100, 0, 20, 50)}) == Numbers{30, 0}));
  CHECK((asked({member(0, 100, 0, 80), member(0, 100, 0, 20, 60)}) == Numbers{0, 0}));
}

TEST(the_lowest_priority_is_asked_first_and_there_the_largest) {
  CHECK((asked({member(0, 100, -1, 20), member(0, 100, -1, 30), member(0, 100, 0, 50, 60)}) ==
         Numbers{0, 10, 0}));
  CHECK((asked({member(0, 100, -1, 20), member(0, 100, -1, 30), member(0, 100, 0, 50, 80)}) ==
         Numbers{10, 20, 0}));
  CHECK((asked({member(0, 100, -1, 20), member(5, 100, -2, 20), member(0, 100, 0, 60, 80)}) ==
         Numbers{5, 15, 0}));
}

TEST(a_higher_priority_is_asked_for_a_minimum_only) {
  CHECK((asked({member(0, 100, 5, 100), member(0, 100, 0, 0, 10)}) == Numbers{0, 0}));
  CHECK((asked({member(0, 100, 5, 100), member(10, 100, 0, 0, 10)}) == Numbers{10, 0}));
}

TEST(what_is_free_goes_to_who_has_precedence) {
  const Members members{member(0, 100, 0, 50), member(0, 100, 1, 30, 45)};
  CHECK((reach(members) == Numbers{55, 50}));
}

TEST(a_want_that_cannot_be_satisfied_holds_nothing_back) {
  CHECK((reach({member(0, 100, 0, 50), member(40, 60, 0, 30, 60)}) == Numbers{60, 50}));
}

TEST(a_largest_budget_that_has_gone_is_asked_back) {
  CHECK((asked({member(0, 60, 0, 50), member(0, 50, 0, 40)}) == Numbers{20, 10}));
}

TEST(minima_that_once_fitted_stay_promised) {
  const Members members{member(40, 60, 0, 40), member(40, 60, 0, 30)};
  CHECK(share_total(members) == Bytes{80});
  CHECK((reach(members) == Numbers{40, 40}));
}

namespace {

struct Random {
  explicit Random(std::uint64_t seed) : engine(seed) {}
  std::uint64_t upto(std::uint64_t most) {
    return std::uniform_int_distribution<std::uint64_t>(0, most)(engine);
  }
  std::mt19937_64 engine;
};

/// A table as processes could have made it: the grants fit.
Members random_members(Random& random) {
  Members members(1 + random.upto(4));
  const std::uint64_t total = 1 + random.upto(40);
  std::uint64_t minima = total;
  for (ShareMember& each : members) {
    each.maximum = {random.upto(total)};
    each.minimum = {std::min(random.upto(minima / 2), each.maximum.count)};
    minima -= each.minimum.count;
    each.priority = static_cast<int>(random.upto(2));
  }
  members[0].maximum = {total};
  std::uint64_t left = share_total(members).count;
  for (ShareMember& each : members) {
    each.grant = {std::min(random.upto(left), each.maximum.count)};
    left -= each.grant.count;
    if (random.upto(1) == 0) each.wanted = {random.upto(each.maximum.count)};
  }
  return members;
}

Bytes sum_of_grants(const Members& members) {
  return std::accumulate(members.begin(), members.end(), Bytes{},
                         [](Bytes sum, const ShareMember& each) { return sum + each.grant; });
}

bool may_press(const ShareMember& one, const ShareMember& other, Bytes left) {
  if (one.wanted <= one.grant) return false;
  if (one.grant < one.minimum || one.priority > other.priority) return true;
  return one.priority == other.priority && one.wanted <= left;
}

/// One want against a table, unit by unit: what is free, then of the lowest priority whoever has most.
Numbers naive_asked(const Members& members, std::size_t i) {
  Numbers out(members.size());
  const ShareMember& one = members[i];
  const auto has = [&](std::size_t j) { return members[j].grant.count - out[j]; };
  const auto ask = [&](std::uint64_t units, bool anybody) {
    const Numbers before = out;
    for (; units != 0; --units) {
      std::size_t best = members.size();
      for (std::size_t j = 0; j < members.size(); ++j) {
        const ShareMember& other = members[j];
        if (j == i || has(j) <= other.minimum.count) continue;
        if (!anybody && other.priority > one.priority) continue;
        if (!anybody && other.priority == one.priority && has(j) <= one.wanted.count) continue;
        const auto key = [&](std::size_t k) { return std::pair(-members[k].priority, has(k)); };
        if (best == members.size() || key(j) > key(best)) best = j;
      }
      if (best == members.size()) {
        out = before;
        return;
      }
      ++out[best];
    }
  };
  std::uint64_t free = saturating_sub(share_total(members), sum_of_grants(members)).count;
  const std::uint64_t least = std::min(one.wanted, one.minimum).count;
  const std::uint64_t first = least > one.grant.count ? least - one.grant.count : 0;
  ask(first > free ? first - free : 0, true);
  if (one.wanted <= std::max(one.minimum, one.grant)) return out;
  std::uint64_t others = 0;
  for (std::size_t j = 0; j < members.size(); ++j)
    if (j != i) others += std::max(has(j), members[j].minimum.count);
  const std::uint64_t total = share_total(members).count;
  ask(others + one.wanted.count > total ? others + one.wanted.count - total : 0, false);
  return out;
}

void check_rules(const Members& members, std::uint64_t seed) {
  const auto found = answers(members);
  const Bytes total = share_total(members);
  const auto require = [&](bool holds, const char* rule, std::size_t i) {
    if (!holds)
      check::report("rules", 0,
                    std::string(rule) + ", member " + std::to_string(i) + ", seed " + std::to_string(seed));
  };
  for (std::size_t i = 0; i < members.size(); ++i) {
    const ShareMember& one = members[i];
    Bytes others, reserved;
    bool pressed = false;
    for (std::size_t j = 0; j < members.size(); ++j) {
      if (j == i) continue;
      others += members[j].grant;
      reserved += std::max(members[j].grant, members[j].minimum);
      pressed |= may_press(members[j], one, one.grant - found[i].asked);
    }
    require(found[i].reach >= one.grant, "a reach is never less than the grant", i);
    require(found[i].reach == one.grant || others + found[i].reach <= total, "grants fit into the total", i);
    require(found[i].reach <= std::max(one.minimum, one.grant) || reserved + found[i].reach <= total,
            "minima stay free", i);
    require(found[i].reach <= std::max(one.maximum, one.grant), "nobody gets more than his budget", i);
    require(found[i].asked == Bytes{} || one.grant - found[i].asked >= one.minimum,
            "nobody is asked below his minimum", i);
    const bool excess = one.grant > one.maximum || sum_of_grants(members) > total;
    require(found[i].asked == Bytes{} || pressed || excess, "whoever is asked is asked by somebody who may",
            i);
  }
}

}  // namespace

TEST(random_tables_keep_the_rules) {
  for (std::uint64_t seed = 0; seed < 20'000; ++seed) {
    Random random(seed);
    Members members = random_members(random);
    check_rules(members, seed);
    // A budget is lowered below what is granted of it.
    ShareMember& one = members[random.upto(members.size() - 1)];
    one.maximum = {one.minimum.count + random.upto(one.maximum.count - one.minimum.count)};
    one.wanted = std::min(one.wanted, one.maximum);
    check_rules(members, seed);
  }
}

TEST(one_want_is_asked_of_those_of_whom_a_naive_model_asks_it) {
  for (std::uint64_t seed = 0; seed < 20'000; ++seed) {
    Random random(seed);
    Members members = random_members(random);
    const std::size_t i = random.upto(members.size() - 1);
    for (std::size_t j = 0; j < members.size(); ++j)
      if (j != i) members[j].wanted = {};
    Numbers expected = naive_asked(members, i), found = asked(members);
    // Of several that have the same any may be asked.
    const auto by_class = [&](const Numbers& of) {
      std::vector<std::pair<int, std::uint64_t>> out;
      for (std::size_t j = 0; j < of.size(); ++j)
        out.emplace_back(members[j].priority, members[j].grant.count - of[j]);
      std::sort(out.begin(), out.end());
      return out;
    };
    if (by_class(expected) != by_class(found)) check::report("naive", 0, "seed " + std::to_string(seed));
  }
}

/// Everybody gives what he is asked for and takes what he wants: it ends, and minima are had.
TEST(pressing_comes_to_an_end_and_minima_are_obtained) {
  for (std::uint64_t seed = 0; seed < 5'000; ++seed) {
    Random random(seed);
    Members members = random_members(random);
    for (ShareMember& each : members) each.wanted = std::max(each.wanted, each.minimum);
    bool moved = true;
    int rounds = 0;
    for (; moved && rounds < 200; ++rounds) {
      moved = false;
      for (std::size_t i = 0; i < members.size(); ++i) {
        const ShareAnswer answer = answers(members)[i];
        ShareMember& one = members[i];
        const Bytes before = one.grant;
        one.grant -= answer.asked;
        if (answer.asked == Bytes{} && one.wanted > one.grant)
          one.grant = std::max(one.grant, std::min(one.wanted, answer.reach));
        moved |= one.grant != before;
      }
    }
    CHECK(!moved);
    for (const ShareMember& each : members)
      if (each.grant < each.minimum) check::report("minimum", 0, "seed " + std::to_string(seed));
    if (sum_of_grants(members) > share_total(members))
      check::report("sum", 0, "seed " + std::to_string(seed));
  }
}
