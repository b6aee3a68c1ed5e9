// Compiled kernels on disk, so that the driver compiles each one once on this machine.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "loader.h"

namespace greencc::vulkan {

class Device;

class PipelineCache {
 public:
  // Reads $XDG_CACHE_HOME/greencc/vulkan/DEVICE-DRIVER.bin. A file that is missing, damaged or of another driver is
  // as good as none.
  explicit PipelineCache(Device& device);

  VkPipelineCache handle() const { return handle_; }

  // A kernel was compiled that the file lacks.
  void Grew() { grew_ = true; }

  // Writes the file when it lacks something. Failing to is no error: the cache only saves time.
  void Save();

 private:
  Device& device_;
  std::string path_;
  VkPipelineCache handle_ = VK_NULL_HANDLE;
  std::atomic<bool> grew_{false};
  std::mutex mutex_;
};

}  // namespace greencc::vulkan
