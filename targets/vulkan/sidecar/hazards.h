// Which bytes the commands since the last barrier have read and written.
#pragma once

#include <algorithm>
#include <vector>

#include "memory.h"

namespace greencc::vulkan {

using Ranges = std::vector<Range>;

inline bool AnyOverlap(const Ranges& some, const Ranges& others) {
  return std::any_of(some.begin(), some.end(), [&](const Range& a) {
    return std::any_of(others.begin(), others.end(), [&](const Range& b) { return a.Overlaps(b); });
  });
}

class Hazards {
 public:
  // Whether a command has to wait for one before it: it reads or writes what that one wrote, or writes what it read.
  bool Conflict(const Ranges& reads, const Ranges& writes) const {
    return AnyOverlap(reads, written_) || AnyOverlap(writes, written_) || AnyOverlap(writes, read_);
  }

  void Add(const Ranges& reads, const Ranges& writes) {
    read_.insert(read_.end(), reads.begin(), reads.end());
    written_.insert(written_.end(), writes.begin(), writes.end());
  }

  // After a barrier, or when the host has waited.
  void Clear() {
    read_.clear();
    written_.clear();
  }

  // Beyond this a barrier costs less than comparing ranges.
  bool full() const { return read_.size() + written_.size() > 2048; }

 private:
  Ranges read_;
  Ranges written_;
};

}  // namespace greencc::vulkan
