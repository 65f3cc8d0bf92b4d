// What is still there, as JSON.
#include <string>

#include "state.h"

namespace standin {
namespace {

std::string place(const Trace& from) { return quoted(site(from, state().settings.site_depth)); }

std::string item(Address start, Size size, const Trace& from) {
  return "{\"start\": " + std::to_string(start) + ", \"size\": " + std::to_string(size) +
         ", \"site\": " + place(from) + "}";
}

template <class Things, class Text>
std::string list(const char* name, const Things& things, Text text_of) {
  std::string out = quoted(name) + ": [";
  const char* separator = "";
  for (const auto& thing : things) {
    const std::string one = text_of(thing.second);
    if (one.empty()) continue;
    out += separator + one;
    separator = ", ";
  }
  return out + "]";
}

}  // namespace

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n')
      out += "\\n";
    else if (static_cast<unsigned char>(c) >= ' ')
      out += c;
  }
  return out + "\"";
}

std::string live(std::size_t& count) {
  const State& s = state();
  const Ledger& ledger = s.ledger;
  const auto spot = [](const auto& thing) { return item(thing.start, thing.size, thing.from); };
  const auto named = [](const auto& thing) {
    return "{\"id\": " + std::to_string(thing->id) + ", \"site\": " + place(thing->from) + "}";
  };
  const auto streams = [](const StreamPtr& stream) {
    return "{\"id\": " + std::to_string(stream->handle) +
           ", \"priority\": " + std::to_string(stream->priority) + ", \"site\": " + place(stream->from) + "}";
  };
  const auto drawn = [](const Graph& graph) { return "{\"site\": " + place(graph.from) + "}"; };
  count = ledger.reservations.size() + ledger.handles.size() + ledger.mappings.size() +
          ledger.allocations.size() + ledger.pinned.size() + s.streams.streams.size() +
          s.streams.events.size() + s.captures.graphs.size() + s.captures.executables.size();
  std::string out = "{" + list("reservations", ledger.reservations, spot) + ", ";
  out += list("handles", ledger.handles, [](const std::shared_ptr<Handle>& handle) {
    return "{\"id\": " + std::to_string(handle->value) +
           ", \"size\": " + std::to_string(handle->physical->size) +
           ", \"references\": " + std::to_string(handle->references) +
           ", \"mappings\": " + std::to_string(handle->mappings) + ", \"site\": " + place(handle->from) + "}";
  });
  out += ", " + list("mappings", ledger.mappings, spot);
  out += ", " + list("allocations", ledger.allocations, spot);
  out += ", " + list("host", ledger.pinned, spot);
  out += ", " + list("streams", s.streams.streams, streams);
  out += ", " + list("events", s.streams.events, named);
  out += ", " + list("graphs", s.captures.graphs, drawn);
  out += ", " + list("executables", s.captures.executables, drawn);
  out += ", \"contexts\": {";
  const char* separator = "";
  for (const Context& context : s.contexts) {
    if (context.retained == 0) continue;
    out += separator + quoted(std::to_string(context.device)) + ": " + std::to_string(context.retained);
    separator = ", ";
  }
  out += "}, \"bytes\": {";
  separator = "";
  for (const auto& [device, bytes] : ledger.used) {
    if (bytes == 0) continue;
    const std::string name = device == Memory::host ? "host" : std::to_string(device);
    out += separator + quoted(name) + ": " + std::to_string(bytes);
    separator = ", ";
  }
  return out + "}, \"queued\": " + std::to_string(s.work.queued()) + "}";
}

}  // namespace standin
