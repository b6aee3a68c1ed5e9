// Counters of one device. Every thread adds to them; a reader sees each one whole, not all of one moment.
#pragma once

#include <atomic>
#include <cstdint>

namespace greencc::vulkan {

#define GREENCC_VULKAN_COUNTERS(X) \
  X(submits)                       \
  X(waits)                         \
  X(dispatches)                    \
  X(barriers)                      \
  X(uploads)                       \
  X(upload_bytes)                  \
  X(downloads)                     \
  X(download_bytes)                \
  X(copies)                        \
  X(copy_bytes)                    \
  X(pipelines_compiled)            \
  X(pipelines_cached)

struct Statistics {
#define GREENCC_VULKAN_DECLARE(name) std::atomic<std::uint64_t> name{0};
  GREENCC_VULKAN_COUNTERS(GREENCC_VULKAN_DECLARE)
#undef GREENCC_VULKAN_DECLARE
  // What exists now, which a reset leaves alone but for the peak.
  std::atomic<std::uint64_t> allocated_bytes{0};
  std::atomic<std::uint64_t> peak_bytes{0};
  std::atomic<std::uint64_t> reserved_bytes{0};
  std::atomic<std::uint64_t> staging_bytes{0};

  void Allocated(std::uint64_t bytes) {
    std::uint64_t now = allocated_bytes.fetch_add(bytes) + bytes;
    std::uint64_t peak = peak_bytes.load();
    while (now > peak && !peak_bytes.compare_exchange_weak(peak, now)) {
    }
  }

  void Reset() {
#define GREENCC_VULKAN_RESET(name) name = 0;
    GREENCC_VULKAN_COUNTERS(GREENCC_VULKAN_RESET)
#undef GREENCC_VULKAN_RESET
    peak_bytes = allocated_bytes.load();
  }
};

}  // namespace greencc::vulkan
