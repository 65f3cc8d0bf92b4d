#include "policy/prefix_index.h"

#include <algorithm>
#include <utility>

namespace vmm {
namespace {

/// One more can be added without an allocation, which could be refused.
void make_room(std::vector<std::uint32_t>& slots) {
  if (slots.size() == slots.capacity()) slots.reserve(std::max<std::size_t>(1, 2 * slots.size()));
}

}  // namespace

/// Slot by slot, because a long path would be destroyed node within node, deeper than a stack may be.
PrefixIndex::~PrefixIndex() {
  for (std::uint32_t slot = 0; slot < paths_.size(); ++slot) end(slot);
}

void PrefixIndex::begin(std::uint32_t slot, const std::string& salt) {
  end(slot);
  std::vector<Token> rest;
  rest.reserve(block_tokens);
  auto root = roots_.find(salt);
  if (root == roots_.end()) {
    Node made;
    make_room(made.holders);
    root = roots_.try_emplace(salt, std::move(made)).first;
    root->second.salt = &root->first;
  }
  make_room(root->second.holders);
  root->second.holders.push_back(slot);
  paths_[slot] = {&root->second, std::move(rest)};
}

PrefixIndex::Node& PrefixIndex::child(Node& node, const Block& block) {
  const auto found = node.children.find(block);
  if (found != node.children.end()) return *found->second;
  auto made = std::make_unique<Node>();
  made->parent = &node;
  made->depth = node.depth + 1;
  make_room(made->holders);
  const auto entry = node.children.emplace(block, std::move(made)).first;
  entry->second->block = &entry->first;
  return *entry->second;
}

void PrefixIndex::append(std::uint32_t slot, std::span<const Token> tokens) {
  const Tokens before = known(slot);
  try {
    append_some(slot, tokens);
  } catch (...) {
    cut(slot, before);
    throw;
  }
}

/// If this throws, the slot may hold the first of the tokens.
void PrefixIndex::append_some(std::uint32_t slot, std::span<const Token> tokens) {
  Path& path = paths_[slot];
  while (path.rest.size() + tokens.size() >= block_tokens) {
    Block block;
    const auto more = static_cast<std::ptrdiff_t>(block_tokens - path.rest.size());
    std::copy(tokens.begin(), tokens.begin() + more, std::ranges::copy(path.rest, block.begin()).out);
    Node& next = child(*path.end, block);
    next.holders.push_back(slot);
    path.end = &next;
    path.rest.clear();
    tokens = tokens.subspan(static_cast<std::size_t>(more));
  }
  path.rest.insert(path.rest.end(), tokens.begin(), tokens.end());
}

void PrefixIndex::copy(std::uint32_t from, std::uint32_t to, Tokens length) {
  end(to);
  if (!begun(from)) return;
  const Path& origin = paths_[from];
  Node* node = origin.end;
  const bool whole = length >= known(from);
  while (node->depth * std::uint64_t{block_tokens} > length.count) node = node->parent;
  std::vector<Token> rest;
  rest.reserve(block_tokens);
  if (whole)
    rest.assign(origin.rest.begin(), origin.rest.end());
  else if (const std::size_t more = length.count % block_tokens; more != 0 && node == origin.end)
    rest.assign(origin.rest.begin(), origin.rest.begin() + static_cast<std::ptrdiff_t>(more));
  else if (more != 0) {
    const Node* next = origin.end;
    while (next->parent != node) next = next->parent;
    rest.assign(next->block->begin(), next->block->begin() + static_cast<std::ptrdiff_t>(more));
  }
  for (Node* each = node; each != nullptr; each = each->parent) make_room(each->holders);
  paths_[to] = {node, std::move(rest)};
  for (; node != nullptr; node = node->parent) node->holders.push_back(to);
}

void PrefixIndex::cut(std::uint32_t slot, Tokens to) {
  if (to >= known(slot)) return;
  Path& path = paths_[slot];
  if (to >= findable(slot)) {
    path.rest.resize((to - findable(slot)).count);
    return;
  }
  path.rest.clear();
  while (path.end->depth * std::uint64_t{block_tokens} > to.count) {
    if (path.end->depth * std::uint64_t{block_tokens} - to.count < block_tokens)
      path.rest.assign(path.end->block->begin(),
                       path.end->block->begin() + static_cast<std::ptrdiff_t>(to.count % block_tokens));
    Node* const parent = path.end->parent;
    leave(path.end, slot);
    path.end = parent;
  }
}

void PrefixIndex::end(std::uint32_t slot) {
  if (!begun(slot)) return;
  cut(slot, {});
  leave(paths_[slot].end, slot);
  paths_[slot] = {};
}

/// The slot holds the node no more. Who holds it last ends it.
void PrefixIndex::leave(Node* node, std::uint32_t slot) {
  std::vector<std::uint32_t>& holders = node->holders;
  *std::ranges::find(holders, slot) = holders.back();
  holders.pop_back();
  if (!holders.empty()) return;
  if (node->parent != nullptr)
    node->parent->children.erase(node->parent->children.find(*node->block));
  else
    roots_.erase(roots_.find(*node->salt));
}

Tokens PrefixIndex::known(std::uint32_t slot) const {
  return findable(slot) + Tokens{paths_[slot].rest.size()};
}

Tokens PrefixIndex::findable(std::uint32_t slot) const {
  return {begun(slot) ? paths_[slot].end->depth * std::uint64_t{block_tokens} : 0};
}

std::string PrefixIndex::salt(std::uint32_t slot) const {
  const Node* node = paths_[slot].end;
  while (node != nullptr && node->parent != nullptr) node = node->parent;
  return node == nullptr ? std::string{} : *node->salt;
}

std::vector<PrefixIndex::Token> PrefixIndex::tokens(std::uint32_t slot, Tokens length) const {
  std::vector<Token> out(known(slot).count);
  const Path& path = paths_[slot];
  std::ranges::copy(path.rest, out.end() - static_cast<std::ptrdiff_t>(path.rest.size()));
  for (const Node* node = path.end; node != nullptr && node->block != nullptr; node = node->parent)
    std::ranges::copy(*node->block, out.begin() + std::ptrdiff_t{node->depth - 1} * block_tokens);
  out.resize(length.count);
  return out;
}

const PrefixIndex::Node* PrefixIndex::deepest(const std::string& salt, std::span<const Token> tokens) const {
  const auto root = roots_.find(salt);
  if (root == roots_.end()) return nullptr;
  const Node* node = &root->second;
  for (; tokens.size() >= block_tokens; tokens = tokens.subspan(block_tokens)) {
    Block block;
    std::copy_n(tokens.begin(), block_tokens, block.begin());
    const auto next = node->children.find(block);
    if (next == node->children.end()) break;
    node = next->second.get();
  }
  return node;
}

}  // namespace vmm
