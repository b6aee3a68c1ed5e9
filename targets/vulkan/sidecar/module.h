// The kernels of an artifact as a module of the runtime, which an artifact's library imports.
#pragma once

#include <tvm/ffi/extra/module.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernel.h"
#include "kernel_table.h"

namespace greencc::vulkan {

class KernelModule : public tvm::ffi::ModuleObj {
 public:
  // Throws a ValueError when the table or the code is damaged.
  KernelModule(std::string json, std::string spirv);

  const char* kind() const final { return "vulkan"; }
  int GetPropertyMask() const final { return tvm::ffi::Module::kBinarySerializable | tvm::ffi::Module::kRunnable; }
  tvm::ffi::Optional<tvm::ffi::Function> GetFunction(const tvm::ffi::String& name) final;
  // The length of kernels.json in eight bytes, the least significant first, kernels.json, kernels.spv.
  tvm::ffi::Bytes SaveToBytes() const final;
  tvm::ffi::String InspectSource(const tvm::ffi::String& format) const final;

  static tvm::ffi::Module FromBytes(const tvm::ffi::Bytes& bytes);

 private:
  void Call(std::size_t index, tvm::ffi::PackedArgs arguments);
  std::vector<std::uint32_t> CodeOf(const KernelEntry& entry) const;
  std::shared_ptr<const Kernel> KernelFor(Device& device, std::size_t index);

  std::string json_;
  std::string spirv_;
  std::vector<KernelEntry> entries_;
  std::map<std::string, std::size_t> by_name_;
  std::mutex mutex_;
  // Compiled when they are first called on a device.
  std::map<std::pair<Device*, std::size_t>, std::shared_ptr<const Kernel>> kernels_;
};

}  // namespace greencc::vulkan
