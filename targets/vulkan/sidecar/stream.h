// Records kernels and copies in program order and submits them in batches.
//
// A command waits for an earlier one (a barrier) only where it reads or writes bytes that the earlier one wrote, or
// writes bytes that it read. Work of other streams on the same memory is waited for by the host before a command is
// recorded: models that run at the same time in two threads share only what neither writes.
//
// A stream's work may fail in a call of another thread, which waits for it. The stream keeps that failure for the next
// call of its owner. The other thread is told too where it reads what was not computed.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "batch.h"
#include "hazards.h"
#include "profile.h"

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
  // The same for a thread that ends: nothing is copied to the host, whose memory may be gone, and nobody is told.
  void Finish();
  // The same for another thread that needs memory: what fails is the owner's.
  void Settle();
  // Forgets what the host was to read: its memory is about to be freed.
  void DropDownloads();
  // Waits until the batch of that number is done, well or not. Returns why it could not, or null.
  std::exception_ptr WaitFor(std::uint64_t number);
  // Why the device never did the batch of that number, or null.
  std::exception_ptr FailureOf(std::uint64_t number) const;

  // Times of kernels that the device has done.
  Profile& profile() { return profile_; }

  // Number of the last batch that the device will not touch any more.
  std::uint64_t completed() const { return completed_.load(std::memory_order_acquire); }

 private:
  // Batches that the device never did.
  struct Failure {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    std::exception_ptr error;
  };

  void ThrowKept();
  // Runs what another thread asks for; its failure is kept for the owner.
  template <typename Work>
  void Keep(const Work& work);
  void WaitForOthers(const Location& location, bool reads, bool writes);
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
  // Called while an exception is handled.
  void Drop(std::unique_ptr<Batch> failed);

  Device& device_;
  Queue& queue_;
  std::mutex mutex_;
  std::unique_ptr<Batch> recording_;
  std::vector<std::unique_ptr<Batch>> in_flight_;
  std::vector<std::unique_ptr<Batch>> idle_;
  // Of a device that was lost: it may still hold them.
  std::vector<std::unique_ptr<Batch>> dropped_;
  Hazards hazards_;
  std::uint64_t next_number_ = 1;
  std::atomic<std::uint64_t> completed_{0};
  Profile profile_;
  // What failed while another thread waited; the owner has not been told.
  std::exception_ptr kept_;
  std::atomic<bool> has_failures_{false};
  mutable std::mutex failures_mutex_;
  std::vector<Failure> failures_;
};

}  // namespace greencc::vulkan
