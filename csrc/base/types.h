// Strong types: one for each count, index and size, so that two integers cannot be swapped unseen.
#pragma once

#include <compare>
#include <cstdint>
#include <limits>

namespace vmm {

/// A count of something: adds with its own kind, scales by a plain number.
template <class Tag>
struct Count {
  std::uint64_t count = 0;

  constexpr auto operator<=>(const Count&) const = default;
  constexpr Count operator+(Count other) const { return {count + other.count}; }
  constexpr Count operator-(Count other) const { return {count - other.count}; }
  constexpr Count operator*(std::uint64_t factor) const { return {count * factor}; }
  constexpr std::uint64_t operator/(Count other) const { return count / other.count; }
  constexpr Count operator/(std::uint64_t divisor) const { return {count / divisor}; }
  constexpr Count operator%(Count other) const { return {count % other.count}; }
  constexpr Count& operator+=(Count other) { return *this = *this + other; }
  constexpr Count& operator-=(Count other) { return *this = *this - other; }
};

/// `a` − `b`, or nothing where `b` is more: what is left of a limit, or what a limit is exceeded by.
template <class Tag>
constexpr Count<Tag> saturating_sub(Count<Tag> a, Count<Tag> b) {
  return a > b ? a - b : Count<Tag>{};
}

using Bytes = Count<struct BytesTag>;
using Pages = Count<struct PagesTag>;
using Tokens = Count<struct TokensTag>;

/// The name of one entry of a table.
template <class Tag>
struct Id {
  static constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();
  std::uint32_t value = none;

  constexpr auto operator<=>(const Id&) const = default;
  constexpr bool valid() const { return value != none; }
};

using ReservationId = Id<struct ReservationTag>;
using PageIndex = Id<struct PageIndexTag>;  // a virtual page's place in its reservation
using PhysicalPageId = Id<struct PhysicalPageTag>;
using ContentId = Id<struct ContentTag>;
using RunId = Id<struct RunTag>;
using TenantId = Id<struct TenantTag>;
/// Bytes of one kind are never seen as another: a page is zeroed before it holds another kind. (One dtype's
/// numbers, read as another's, may be infinite.)
using ByteKind = Id<struct ByteKindTag>;

/// Pages [first, first + count) of one reservation.
struct PageRange {
  PageIndex first;
  Pages count;
};

/// A virtual address. Not a pointer: on a GPU the host may not look at it.
struct Address {
  std::uintptr_t value = 0;

  constexpr auto operator<=>(const Address&) const = default;
  constexpr Address operator+(Bytes offset) const { return {value + offset.count}; }
  constexpr Bytes operator-(Address other) const { return {value - other.value}; }
};

inline namespace literals {
constexpr Bytes operator""_KiB(unsigned long long n) { return {n << 10}; }
constexpr Bytes operator""_MiB(unsigned long long n) { return {n << 20}; }
constexpr Bytes operator""_GiB(unsigned long long n) { return {n << 30}; }
constexpr Bytes operator""_TiB(unsigned long long n) { return {n << 40}; }
}  // namespace literals

constexpr bool is_power_of_two(std::uint64_t n) { return n != 0 && (n & (n - 1)) == 0; }
constexpr Bytes round_up(Bytes size, Bytes unit) {
  return {(size.count + unit.count - 1) / unit.count * unit.count};
}

}  // namespace vmm
