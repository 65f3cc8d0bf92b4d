#include "streams.h"

namespace standin {

std::vector<OperationPtr> Streams::predecessors(const Stream& stream) const {
  std::vector<OperationPtr> out;
  const auto add = [&](const OperationPtr& operation) {
    if (operation != nullptr && !operation->observed) out.push_back(operation);
  };
  add(stream.last);
  if (stream.blocking()) add(stream.context->legacy->last);
  if (!stream.legacy) return out;
  for (const auto& [id, other] : streams)
    if (other->context == stream.context && other->blocking()) add(other->last);
  for (const auto& [id, other] : stream.context->per_thread) add(other->last);
  for (const OperationPtr& orphan : stream.context->orphans) add(orphan);
  return out;
}

}  // namespace standin
