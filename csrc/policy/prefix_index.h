// Which slots hold the K and V of which tokens, found by the tokens themselves.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/types.h"

namespace vmm {

/// A tree whose nodes are blocks of tokens. A path from a root spells the first tokens of the slots that hold
/// its last block. Each owner who must not learn of the others' tokens has a root of his own, named by his
/// salt.
///
/// The nodes are found by the tokens, not by a hash of them: a child is looked up among its siblings in
/// order. So nothing can be taken for something else, and nobody can choose tokens that make the search slow:
/// it compares with a logarithm of the siblings for each block, and most blocks have none.
///
/// A call that throws std::bad_alloc has changed nothing, except that begin() and copy() have ended what was
/// known of the slot. Those that only take away allocate nothing.
///
/// Pure, and not thread-safe.
class PrefixIndex {
 public:
  /// Only whole blocks are found. vLLM's blocks have as many tokens, unless it is told otherwise.
  static constexpr std::uint32_t block_tokens = 16;
  using Token = std::int32_t;

  explicit PrefixIndex(std::uint32_t slots) : paths_(slots), seen_(slots) {}
  ~PrefixIndex();
  PrefixIndex(const PrefixIndex&) = delete;
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  /// From now on the slot holds tokens of this owner: none yet.
  void begin(std::uint32_t slot, const std::string& salt);
  bool begun(std::uint32_t slot) const { return paths_[slot].end != nullptr; }
  /// It holds these after those that it held.
  void append(std::uint32_t slot, std::span<const Token> tokens);
  /// `to`, which nothing is known of, holds the first `length` tokens of `from`, or all if it has fewer.
  void copy(std::uint32_t from, std::uint32_t to, Tokens length);
  /// It holds tokens from `to` on no more.
  void cut(std::uint32_t slot, Tokens to);
  /// Nothing is known of the slot any more.
  void end(std::uint32_t slot);

  /// How many tokens of a slot are known, and how many of those are found, because they fill blocks.
  Tokens known(std::uint32_t slot) const;
  Tokens findable(std::uint32_t slot) const;
  /// Whose they are; none where nothing is known of the slot.
  std::string salt(std::uint32_t slot) const;
  /// The first `length` of them, which must be known.
  std::vector<Token> tokens(std::uint32_t slot, Tokens length) const;

  /// Calls visit(length, slots) for the slots that hold the first `length` of these tokens and no more of
  /// them, from the greatest length down, until that returns false. `slots` holds until the index changes.
  template <class Visit>
  void find(const std::string& salt, std::span<const Token> tokens, Visit visit) {
    std::vector<std::uint32_t> slots;
    ++search_;
    for (const Node* node = deepest(salt, tokens); node != nullptr && node->depth != 0; node = node->parent) {
      slots.clear();
      for (std::uint32_t slot : node->holders)
        if (seen_[slot] != search_) {
          seen_[slot] = search_;
          slots.push_back(slot);
        }
      if (!slots.empty() && !visit(Tokens{node->depth * std::uint64_t{block_tokens}}, slots)) return;
    }
  }
  /// Of bookkeeping, for each slot that nothing is known of.
  static constexpr std::size_t bytes_per_slot() { return sizeof(Path) + sizeof(std::uint64_t); }

 private:
  using Block = std::array<Token, block_tokens>;
  struct Node {
    Node* parent = nullptr;
    const Block* block = nullptr;        // its key among the parent's children
    const std::string* salt = nullptr;   // of a root: its key
    std::uint32_t depth = 0;             // blocks from the root to here
    std::vector<std::uint32_t> holders;  // slots that hold this block; of a root: that have begun there
    std::map<Block, std::unique_ptr<Node>> children;
  };
  struct Path {
    Node* end = nullptr;      // of the last whole block; none: nothing is known of the slot
    std::vector<Token> rest;  // what follows, less than a block; with room for one
  };

  void append_some(std::uint32_t slot, std::span<const Token> tokens);
  const Node* deepest(const std::string& salt, std::span<const Token> tokens) const;
  Node& child(Node& node, const Block& block);
  void leave(Node* node, std::uint32_t slot);

  std::map<std::string, Node> roots_;
  std::vector<Path> paths_;          // by slot
  std::vector<std::uint64_t> seen_;  // by slot: the last search that found it
  std::uint64_t search_ = 0;
};

}  // namespace vmm
