// TVM's view of Vulkan devices.
#pragma once

#include <tvm/runtime/device_api.h>

namespace greencc::vulkan {

// The one DeviceAPI of device type kDLVulkan.
tvm::runtime::DeviceAPI* TheDeviceApi();

}  // namespace greencc::vulkan
