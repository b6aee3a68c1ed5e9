#include "module.h"

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include <cstring>
#include <limits>

#include "arguments.h"
#include "errors.h"
#include "instance.h"
#include "spirv.h"
#include "stream.h"
#include "streams.h"

namespace greencc::vulkan {

namespace ffi = tvm::ffi;

KernelModule::KernelModule(std::string json, std::string spirv) : json_(std::move(json)), spirv_(std::move(spirv)) {
  entries_ = ReadKernelTable(json_, spirv_.size());
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    by_name_[entries_[i].name] = i;
    CheckSpirv(entries_[i], CodeOf(entries_[i]));
  }
}

ffi::Optional<ffi::Function> KernelModule::GetFunction(const ffi::String& name) {
  auto found = by_name_.find(name);
  if (found == by_name_.end()) return std::nullopt;
  auto self = ffi::details::ObjectUnsafe::ObjectPtrFromUnowned<KernelModule>(this);
  return ffi::Function::FromPacked([self, index = found->second](ffi::PackedArgs arguments, ffi::Any*) {
    self->Call(index, arguments);
  });
}

ffi::Bytes KernelModule::SaveToBytes() const {
  std::string bytes;
  std::uint64_t length = json_.size();
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(length >> (8 * i) & 0xff));
  return ffi::Bytes(bytes + json_ + spirv_);
}

ffi::Module KernelModule::FromBytes(const ffi::Bytes& bytes) {
  std::string_view data(bytes.data(), bytes.size());
  std::uint64_t length = 0;
  if (data.size() < 8) TVM_FFI_THROW(ValueError) << "the Vulkan kernels are cut off";
  for (int i = 0; i < 8; ++i) length |= static_cast<std::uint64_t>(static_cast<unsigned char>(data[i])) << (8 * i);
  data.remove_prefix(8);
  if (length > data.size()) TVM_FFI_THROW(ValueError) << "the Vulkan kernels are cut off";
  return ffi::Module(
      ffi::make_object<KernelModule>(std::string(data.substr(0, length)), std::string(data.substr(length))));
}

ffi::String KernelModule::InspectSource(const ffi::String& format) const {
  return format == "" || format == "json" ? ffi::String(json_) : ffi::String();
}

void KernelModule::Call(std::size_t index, ffi::PackedArgs arguments) {
  const KernelEntry& entry = entries_[index];
  Launch launch;
  Device& device = ReadArguments(entry, arguments, &launch);
  // A grid of no groups is how a tensor of size 0 looks.
  if (launch.groups[0] == 0 || launch.groups[1] == 0 || launch.groups[2] == 0) return;
  launch.kernel = KernelFor(device, index);
  CurrentStream(device).Run(launch);
}

std::shared_ptr<const Kernel> KernelModule::KernelFor(Device& device, std::size_t index) {
  std::lock_guard lock(mutex_);
  std::shared_ptr<const Kernel>& kernel = kernels_[{&device, index}];
  if (kernel == nullptr) {
    const KernelEntry& entry = entries_[index];
    kernel = std::make_shared<const Kernel>(device, entry, CodeOf(entry));
  }
  return kernel;
}

std::vector<std::uint32_t> KernelModule::CodeOf(const KernelEntry& entry) const {
  if (entry.code_size % 4 != 0) {
    TVM_FFI_THROW(ValueError) << "kernels.spv: the code of '" << entry.name << "' is cut off";
  }
  std::vector<std::uint32_t> code(entry.code_size / 4);
  if (!code.empty()) std::memcpy(code.data(), spirv_.data() + entry.code_offset, entry.code_size);
  return code;
}

}  // namespace greencc::vulkan
