#include "timer.h"

#include <chrono>

#include "device.h"
#include "instance.h"
#include "stream.h"
#include "streams.h"

// The wheel's tvm/runtime/timer.h includes headers that the wheel lacks. Without them this is the class it declares.
#if __has_include(<tvm/support/io.h>)
#include <tvm/runtime/timer.h>
#else
namespace tvm {
namespace runtime {
class TimerNode : public ffi::Object {
 public:
  virtual void Start() = 0;
  virtual void Stop() = 0;
  virtual int64_t SyncAndGetElapsedNanos() = 0;
  virtual ~TimerNode() {}

  static constexpr const bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO("runtime.TimerNode", TimerNode, ffi::Object);
};
}  // namespace runtime
}  // namespace tvm
#endif

namespace greencc::vulkan {

namespace {

// Times what the calling thread's stream does between Start and Stop, by the device's clock.
class VulkanTimer : public tvm::runtime::TimerNode {
 public:
  explicit VulkanTimer(int index) : device_(Instance::Get().device(index)), stream_(CurrentStream(device_)) {
    pool_ = device_.physical().timestamp_bits == 0 ? VK_NULL_HANDLE : device_.NewTimestamps(2);
  }

  ~VulkanTimer() override {
    if (pool_ == VK_NULL_HANDLE) return;
    // A device that was lost may still hold the pool.
    if (stream_.WaitFor(numbers_[1]) != nullptr || device_.lost()) return;
    device_.vk().vkDestroyQueryPool(device_.handle(), pool_, nullptr);
  }

  void Start() override { Read(0); }
  void Stop() override { Read(1); }

  std::int64_t SyncAndGetElapsedNanos() override {
    stream_.Synchronize();
    if (pool_ == VK_NULL_HANDLE) {
      return std::chrono::duration_cast<std::chrono::nanoseconds>(host_[1] - host_[0]).count();
    }
    // Timestamps that are never written would be waited for without end.
    for (std::uint64_t number : numbers_) {
      if (std::exception_ptr error = stream_.FailureOf(number)) std::rethrow_exception(error);
    }
    return static_cast<std::int64_t>(device_.NanosecondsBetween(device_.ReadTimestamps(pool_, 2), 0));
  }

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("greencc.vulkan.Timer", VulkanTimer, tvm::runtime::TimerNode);

 private:
  void Read(std::uint32_t which) {
    if (pool_ != VK_NULL_HANDLE) {
      numbers_[which] = stream_.WriteTimestamp(pool_, which);
      return;
    }
    stream_.Synchronize();
    host_[which] = std::chrono::steady_clock::now();
  }

  Device& device_;
  Stream& stream_;
  VkQueryPool pool_ = VK_NULL_HANDLE;
  // Batches that write the timestamps.
  std::uint64_t numbers_[2] = {0, 0};
  std::chrono::steady_clock::time_point host_[2];
};

}  // namespace

tvm::ffi::ObjectRef StartTimer(DLDevice device) {
  auto timer = tvm::ffi::make_object<VulkanTimer>(device.device_id);
  return tvm::ffi::ObjectRef(timer);
}

}  // namespace greencc::vulkan
