// The device's own times of the kernels of one stream, while its thread asks for them.
#pragma once

#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace greencc::vulkan {

struct KernelTime {
  std::string kernel;
  double milliseconds = 0;
};

class Profile {
 public:
  // One switch of each thread for all devices, also those that are opened later.
  static bool on() { return on_; }
  static void Turn(bool on) { on_ = on; }

  void Add(const std::string& kernel, double milliseconds) {
    std::lock_guard lock(mutex_);
    // Nobody reads a million times: a profile that was left on must not fill the memory.
    if (times_.size() < kMost) times_.push_back({kernel, milliseconds});
  }

  std::vector<KernelTime> Take() {
    std::lock_guard lock(mutex_);
    return std::exchange(times_, {});
  }

 private:
  static constexpr std::size_t kMost = 1'000'000;

  inline static thread_local bool on_ = false;
  std::mutex mutex_;
  std::vector<KernelTime> times_;
};

}  // namespace greencc::vulkan
