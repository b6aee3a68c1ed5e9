#include "streams.h"

#include <dlpack/dlpack.h>
#include <tvm/ffi/extra/c_env_api.h>

namespace greencc::vulkan {

namespace {

thread_local int current_device = 0;

}  // namespace

int CurrentDevice() { return current_device; }

void SetCurrentDevice(int index) { current_device = index; }

Stream& StreamOf(Device& device, void* handle) {
  return handle == nullptr ? device.ThreadStream() : *static_cast<Stream*>(handle);
}

Stream& CurrentStream(Device& device) { return StreamOf(device, TVMFFIEnvGetStream(kDLVulkan, device.index())); }

}  // namespace greencc::vulkan
