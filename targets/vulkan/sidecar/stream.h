// Records kernels and copies in program order and submits them in batches.
//
// A command waits for an earlier one (a barrier) only where it reads or writes bytes that the earlier one wrote, or
// writes bytes that it read. Work of other streams on the same memory is waited for by the host before a command is
// recorded: models that run at the same time in two threads share only what neither writes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "batch.h"
#include "hazards.h"

namespace greencc::vulkan {

class Device;
struct Queue;

struct BoundBuffer {
  Location location;
  std::uint64_t bytes = 0;
  bool reads = false;
  bool writes = false;
};

struct Launch {
  std::shared_ptr<const Kernel> kernel;
  std::vector<BoundBuffer> buffers;
  // The scalars' slots, and where they go.
  std::vector<std::uint64_t> scalars;
  std::uint32_t groups[3] = {1, 1, 1};
};

class Stream {
 public:
  Stream(Device& device, Queue& queue) : device_(device), queue_(queue) {}
  Stream(const Stream&) = delete;

  void Run(const Launch& launch);
  // The host's bytes are read before this returns.
  void Upload(const void* from, const Location& to, std::uint64_t bytes);
  // The host's bytes are there after Synchronize.
  void ReadBack(const Location& from, void* to, std::uint64_t bytes);
  void Copy(const Location& from, const Location& to, std::uint64_t bytes);

  // Writes a timestamp when everything before is done; `which` 0 empties the pool first. Returns its batch's number.
  std::uint64_t WriteTimestamp(VkQueryPool pool, std::uint32_t which);

  // Submits what is recorded and waits until the device has done everything.
  void Synchronize();
  // The same for a thread that ends: nothing is copied to the host, whose memory may be gone.
  void Finish();
  // Waits until the batch of that number is done.
  void WaitFor(std::uint64_t number);

  // Number of the last batch whose work is done.
  std::uint64_t completed() const { return completed_.load(std::memory_order_acquire); }

 private:
  void WaitForOthers(const Location& location, bool writes);
  Batch& Recording();
  // Makes room for a command: a barrier where it needs one, and copies of what the host is to read before it writes.
  void Guard(const Ranges& reads, const Ranges& writes);
  void Mark(const Location& location, bool reads, bool writes);
  void Barrier(bool counted);
  void CopyOut(Download* download);
  void BindBuffers(const Launch& launch);
  void Dispatch(const Launch& launch);
  void SubmitIfLong();
  void Submit();
  void WaitAndRetire(std::size_t count);
  void RetireDone();
  void Drop(std::unique_ptr<Batch> failed);

  Device& device_;
  Queue& queue_;
  std::mutex mutex_;
  std::unique_ptr<Batch> recording_;
  std::vector<std::unique_ptr<Batch>> in_flight_;
  std::vector<std::unique_ptr<Batch>> idle_;
  std::vector<std::unique_ptr<Batch>> dropped_;
  Hazards hazards_;
  std::uint64_t next_number_ = 1;
  std::atomic<std::uint64_t> completed_{0};
};

}  // namespace greencc::vulkan
