#include "errors.h"

#include <tvm/ffi/error.h>

#include <cstdio>

namespace greencc::vulkan {

std::string ResultName(VkResult result) {
  switch (result) {
    case VK_ERROR_OUT_OF_HOST_MEMORY: return "out of host memory (VK_ERROR_OUT_OF_HOST_MEMORY)";
    case VK_ERROR_OUT_OF_DEVICE_MEMORY: return "out of device memory (VK_ERROR_OUT_OF_DEVICE_MEMORY)";
    case VK_ERROR_INITIALIZATION_FAILED: return "the driver did not start (VK_ERROR_INITIALIZATION_FAILED)";
    case VK_ERROR_DEVICE_LOST: return "the device was lost (VK_ERROR_DEVICE_LOST)";
    case VK_ERROR_MEMORY_MAP_FAILED: return "memory can't be mapped (VK_ERROR_MEMORY_MAP_FAILED)";
    case VK_ERROR_LAYER_NOT_PRESENT: return "a layer is missing (VK_ERROR_LAYER_NOT_PRESENT)";
    case VK_ERROR_EXTENSION_NOT_PRESENT: return "an extension is missing (VK_ERROR_EXTENSION_NOT_PRESENT)";
    case VK_ERROR_FEATURE_NOT_PRESENT: return "a feature is missing (VK_ERROR_FEATURE_NOT_PRESENT)";
    case VK_ERROR_INCOMPATIBLE_DRIVER: return "the driver is incompatible (VK_ERROR_INCOMPATIBLE_DRIVER)";
    case VK_ERROR_TOO_MANY_OBJECTS: return "too many objects (VK_ERROR_TOO_MANY_OBJECTS)";
    case VK_ERROR_FRAGMENTED_POOL: return "a pool is fragmented (VK_ERROR_FRAGMENTED_POOL)";
    case VK_ERROR_OUT_OF_POOL_MEMORY: return "a pool is exhausted (VK_ERROR_OUT_OF_POOL_MEMORY)";
    case VK_ERROR_INVALID_SHADER_NV: return "the driver refused the shader (VK_ERROR_INVALID_SHADER_NV)";
    default: return "VkResult " + std::to_string(static_cast<int>(result));
  }
}

void CheckResult(VkResult result, const char* doing) {
  if (result < 0) TVM_FFI_THROW(RuntimeError) << doing << " failed: " << ResultName(result);
}

std::string Bytes(std::uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  bool whole = value == static_cast<double>(static_cast<std::uint64_t>(value));
  std::snprintf(text, sizeof(text), whole ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

std::string Version(std::uint32_t version) {
  return std::to_string(VK_API_VERSION_MAJOR(version)) + "." + std::to_string(VK_API_VERSION_MINOR(version)) + "." +
         std::to_string(VK_API_VERSION_PATCH(version));
}

std::string Hex(const std::uint8_t* bytes, std::size_t count) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (std::size_t i = 0; i < count; ++i) text += {kDigits[bytes[i] >> 4], kDigits[bytes[i] & 15]};
  return text;
}

}  // namespace greencc::vulkan
